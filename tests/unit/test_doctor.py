"""What the doctor finds on a machine, and that each finding comes with its fix."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from largeforge_ray.errors import ResourceError
from largeforge_ray.flow import doctor
from largeforge_ray.flow.doctor import (
    Check,
    check_disk,
    check_memory,
    check_port,
    check_python,
    check_sandbox,
    check_start,
    check_store,
    check_versions,
    examine,
    require_port,
    require_sandbox,
)
from largeforge_ray.models import Hardware
from largeforge_ray.teach import sandbox

ROOMY = Hardware(cpus=2, gpus=1, memory_gib=8.0, disk_gib=5.0)
TIGHT = Hardware(cpus=2, gpus=0, memory_gib=7.94, disk_gib=4.94)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def bad(check: Check, name: str) -> Check:
    assert (check.name, check.ok) == (name, False)
    assert check.found
    assert check.fix
    return check


@pytest.mark.parametrize(
    ("found", "ok"), [((3, 10), False), ((3, 11), True), ((3, 12), True), ((3, 13), False)]
)
def test_only_supported_pythons_pass(found: tuple[int, int], ok: bool) -> None:
    check = check_python(found)
    assert check.ok is ok
    assert check.found == f"3.{found[1]}"
    if not ok:
        assert bad(check, "python").fix == "use Python 3.11 or 3.12"


def lock(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "lock.txt"
    path.write_text("# pinned packages\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_packages_that_are_as_locked_pass(tmp_path: Path) -> None:
    path = lock(tmp_path, f"pytest=={version('pytest')}", f"PyYAML=={version('pyyaml')}")
    assert check_versions(path) == Check("versions", True, "2 packages as locked")


def test_a_build_for_one_device_is_still_the_locked_version(tmp_path: Path) -> None:
    path = lock(tmp_path, "torch==2.13.0", "other==1.0+cpu")
    assert check_versions(path, {"torch": "2.13.0+cpu", "other": "1.0+cpu"}.__getitem__).ok
    assert not check_versions(path, {"torch": "2.13.1+cpu", "other": "1.0+cpu"}.__getitem__).ok


def test_other_and_missing_packages_are_named_with_both_versions(tmp_path: Path) -> None:
    path = lock(tmp_path, "pytest==0.0.1", f"pyyaml=={version('pyyaml')}", "no-such-package==1.0")
    check = bad(check_versions(path), "versions")
    assert check.found == (
        f"pytest {version('pytest')} (lock: 0.0.1), no-such-package not installed (lock: 1.0)"
    )
    assert check.fix == f"pip install --no-deps -r {path}"


def test_a_long_list_of_other_packages_is_cut(tmp_path: Path) -> None:
    check = bad(check_versions(lock(tmp_path, *(f"no-such-{n}==1.0" for n in range(30)))), "versions")
    assert check.found.count("(lock: 1.0)") == 4
    assert check.found.endswith(" and 26 more")


def test_without_a_lock_file_nothing_is_compared(tmp_path: Path) -> None:
    check = check_versions(tmp_path / "none.txt")
    assert check.ok
    assert "not compared" in check.found


def test_memory_and_disk_pass_from_their_threshold_on() -> None:
    assert check_memory(ROOMY).ok
    assert check_memory(ROOMY).found == "8.0 GiB available, 2 CPUs, 1 GPUs"
    assert check_disk(ROOMY).ok
    assert check_disk(ROOMY).found == "5.0 GiB free"
    assert bad(check_memory(TIGHT), "memory").fix == "free memory until 8 GiB are available"
    assert bad(check_disk(TIGHT), "disk").fix == "free disk until 5 GiB are available"


def test_a_busy_port_is_found_and_says_who_wants_it(busy_port: int) -> None:
    check = bad(check_port(busy_port, "the router"), f"port {busy_port}")
    assert check.found == "Address already in use"
    assert check.fix == "stop what listens on it, or choose another with --port (wanted by the router)"
    with pytest.raises(
        ResourceError, match=f"port {busy_port} cannot be used: Address already in use; stop what"
    ):
        require_port(busy_port)


def test_a_free_port_passes_and_stays_free() -> None:
    port = free_port()
    assert check_port(port, "the router") == Check(f"port {port}", True, "free")
    require_port(port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


@pytest.mark.parametrize("port", [-1, 65536, 10**12])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    bad(check_port(port, "the router"), f"port {port}")
    with pytest.raises(ResourceError, match=f"port {port} cannot be used: "):
        require_port(port)


def test_a_store_is_tried_by_opening_it(tmp_path: Path) -> None:
    store = tmp_path / "forge"
    assert check_store(str(store)) == Check("store", True, f"{store} can be written")
    file = tmp_path / "file"
    file.write_text("kept")
    assert "a file lies where a folder must be" in bad(check_store(str(file)), "store").found
    assert file.read_text() == "kept"
    assert "a file lies" in bad(check_store(str(file / "below")), "store").found
    assert "nosuch://x" in bad(check_store("nosuch://x/y"), "store").found


def test_a_library_is_judged_by_a_program_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started = check_start("sums", "import os; print('noise'); print(os.environ['VLLM_LOGGING_LEVEL'], 1 + 1)")
    assert started == Check("sums", True, "ERROR 2 computes")
    failed = bad(check_start("sums", "import no_such_library"), "sums")
    assert failed.found == "ModuleNotFoundError: No module named 'no_such_library'"
    assert failed.fix.startswith("pip install --no-deps -r ")
    assert bad(check_start("sums", "import sys; sys.exit(3)"), "sums").found == "no output"
    monkeypatch.setattr(doctor, "START_LIMIT_S", 0.3)
    slow = bad(check_start("sums", "import time; time.sleep(30)"), "sums")
    assert slow.found == "did not finish in 0.3 s"


def test_without_the_sandbox_only_rows_with_code_are_refused_and_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, coded = tmp_path / "plain.jsonl", tmp_path / "coded.jsonl"
    plain.write_text('{"prompt": "x", "answer": "y", "check": "exact"}\n')
    coded.write_text('{"prompt": "x", "answer": "assert y", "check": "code"}\n')
    monkeypatch.setattr(sandbox, "available", lambda: None)
    assert check_sandbox() == Check("sandbox", True, "generated code is contained")
    require_sandbox(coded)
    monkeypatch.setattr(sandbox, "available", lambda: "it cannot be contained here: unshare; allow it")
    said = "rows with check: code are refused: it cannot be contained here: unshare; allow it"
    assert check_sandbox() == Check("sandbox", True, said)
    require_sandbox(plain)
    with pytest.raises(
        ResourceError, match=r"^rows of 'coded.jsonl' have check 'code', but it cannot be cont"
    ):
        require_sandbox(coded)


def test_a_quick_examination_looks_at_everything_that_starts_nothing(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(str(tmp_path / "forge"), quick=True)}
    assert list(checks) == [
        "python",
        "versions",
        "memory",
        "disk",
        "port 8000",
        "port 8265",
        "store",
        "sandbox",
    ]
    assert checks["python"].found == ".".join(map(str, sys.version_info[:2]))
    assert checks["store"].ok
    assert all(check.fix for check in checks.values() if not check.ok)

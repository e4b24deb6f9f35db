"""Programs that mean harm, run for real: each is contained, ends in time and leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from largeforge_ray.teach.sandbox import CodeResult, Limits, available, run_code

LIMITS = Limits(seconds=1.5)
SETUP_S = 5.0
"""Raising and removing the walls takes 0.05 s, on a machine with other work up to a hundred times that."""

Run = Callable[..., CodeResult]


@pytest.fixture(autouse=True)
def walls() -> None:
    if (reason := available()) and os.environ.get("CI") != "true":
        pytest.skip(reason)


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs a program under a name that all it starts inherits, and looks for that name afterwards."""
    name = f"sb{secrets.token_hex(5)}"

    def contained(program: str, limits: Limits = LIMITS) -> CodeResult:
        started = time.monotonic()
        result = run_code(f"{called(name)}\n{program}", limits=limits)
        assert time.monotonic() - started < limits.seconds + SETUP_S
        assert processes(name) == []
        return result

    yield contained
    assert psutil.Process().children() == []


def called(name: str) -> str:
    return f"open('/proc/self/comm', 'w').write({name!r})"


def processes(name: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == name]


def says(result: CodeResult) -> str:
    assert result.passed, result
    return result.stdout.strip()


# Honest programs.


def test_an_honest_program_passes_and_is_heard(run: Run) -> None:
    result = run("import json, zoneinfo\nprint(json.dumps([1]), zoneinfo.ZoneInfo('Europe/Paris'))")
    assert (result.outcome, result.stdout, result.stderr) == ("passed", "[1] Europe/Paris\n", "")
    assert 0 < result.seconds < LIMITS.seconds


def test_a_failing_assert_is_shown_with_its_line(run: Run) -> None:
    result = run("total = 2 + 2\nassert total == 5, 'sums'")
    assert (result.outcome, result.passed) == ("failed", False)
    assert "assert total == 5, 'sums'" in result.stderr
    assert result.stderr.endswith("AssertionError: sums\n")


def test_threads_processes_and_files_of_its_own_work(run: Run) -> None:
    program = """
import multiprocessing, subprocess, tempfile
from concurrent.futures import ThreadPoolExecutor
def square(x): return x * x
with tempfile.TemporaryFile() as f: f.write(b'kept'); f.seek(0); print(f.read())
with ThreadPoolExecutor(2) as pool: print(list(pool.map(square, range(3))))
with multiprocessing.Pool(2) as pool: print(pool.map(square, range(3)))
print(subprocess.run(['/bin/echo', 'heard'], capture_output=True).stdout)
"""
    assert says(run(program, Limits())).splitlines() == ["b'kept'", *["[0, 1, 4]"] * 2, "b'heard\\n'"]


def test_text_that_is_no_utf8_runs_and_text_that_is_no_program_fails(run: Run) -> None:
    assert run("x = '\ud800'\nprint(x)").outcome == "passed"
    assert "SyntaxError" in run("def f(:").stderr


def test_only_the_end_of_what_is_written_comes_back(run: Run) -> None:
    result = run("print('first' + 'x' * 10_000 + 'last')")
    assert result.stdout.endswith("xlast\n")
    assert len(result.stdout) == 4096


# Programs that want too much.


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("while True: pass", "timeout"),
        ("import signal\nfor s in range(1, 32):\n  try: signal.signal(s, signal.SIG_IGN)\n"
         "  except OSError: pass\nwhile True: pass", "timeout"),
        ("x = bytearray(8 << 30)", "memory"),
        ("x = []\nwhile True: x.append(bytes(10 << 20))", "memory"),
        ("import os, time\n[os.fork() for _ in range(3)]\nx = b'x' * (150 << 20)\ntime.sleep(9)", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", "output"),
        ("import os\nos.kill(os.getpid(), 11)", "killed"),
    ],
    ids=["loop", "deaf loop", "8 GiB", "growth", "growth of many", "stdout", "stderr", "segfault"],
)  # fmt: skip
def test_a_program_that_wants_too_much_is_ended(run: Run, program: str, outcome: str) -> None:
    assert run(program).outcome == outcome


def test_a_process_that_uses_up_its_cpu_time_ends_before_the_wall_time(run: Run) -> None:
    result = run("while True: pass", Limits(seconds=20, cpu_s=1))
    assert result.outcome == "timeout"
    assert result.seconds < 15


def test_a_fork_bomb_has_no_more_processes_than_its_limit(run: Run) -> None:
    bomb = """
import os, time
def count(): return sum(n.isdigit() and n != '1' for n in os.listdir('/proc'))
end = time.monotonic() + 0.7
while True:
    try: os.fork()
    except OSError: print(count(), flush=True)
    if time.monotonic() > end: time.sleep(9)
"""
    result = run(bomb)
    assert result.outcome == "timeout"
    assert max(map(int, result.stdout.split())) == LIMITS.processes


def test_two_sandboxes_do_not_count_each_others_processes() -> None:
    program = "import os, time\nfor _ in range(10):\n  if not os.fork(): time.sleep(9)\ntime.sleep(0.7)"
    code = f"from largeforge_ray.teach.sandbox import *; assert run_code({program!r}).passed"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [each.wait(20) for each in both] == [0, 0]


def test_the_disk_ends_at_its_limits(run: Run) -> None:
    fill = """
import os
written = 0
for n in range(100):
    try: written += open(f'/tmp/{n}', 'wb', buffering=0).write(bytes(8 << 20))
    except OSError as error: print(written, error.strerror); break
for n in range(10 ** 6):
    try: os.mkdir(f'/tmp/folder{n}')
    except OSError as error: print(error.strerror); break
"""
    limits = replace(LIMITS, disk_bytes=20 << 20)
    full = "No space left on device"
    assert says(run(fill, limits)).splitlines() == [f"{20 << 20} {full}", full]
    assert "File too large" in run("open('/tmp/x', 'wb').write(bytes(17 << 20))").stderr


@pytest.mark.parametrize(
    "call",
    ["mmap.mmap(-1, 4096)", "os.memfd_create('x')", "ctypes.CDLL(None).shmget(0, 4096, 0o1600)"],
)
def test_memory_that_no_process_shows_cannot_be_had(run: Run, call: str) -> None:
    program = f"import ctypes, mmap, os\ntry: print({call})\nexcept PermissionError: print(-1)"
    assert says(run(program)) == "-1"


# Programs that look around.


@pytest.fixture
def secret() -> Iterator[list[Path]]:
    """A token in a folder like Ray's, below this user's home, and a file below /tmp."""
    with (
        tempfile.TemporaryDirectory(dir=Path.home()) as home,
        tempfile.TemporaryDirectory(dir="/tmp") as tmp,
    ):
        paths = [Path(home, ".ray", "auth_token"), Path(tmp, "session", "sockets")]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_text("hidden")
            path.chmod(0o644)
        yield paths
        assert all(path.read_text() == "hidden" for path in paths)


def test_no_file_of_the_host_can_be_read(run: Run, secret: list[Path]) -> None:
    hidden = [*map(str, secret), "/etc/passwd", "/etc/hostname", "/sys/kernel", "/var", "/boot", "/root/.ray"]
    hidden += ["/proc/version", "/proc/sys", "/proc/kcore", "/dev/shm/x", "/dev/kmsg", "/home", "/run"]
    assert says(run(f"import os\nprint([p for p in {hidden} if os.path.lexists(p)])")) == "[]"
    assert os.path.lexists("/etc/passwd")


def test_the_root_holds_nothing_but_what_an_interpreter_needs(run: Run) -> None:
    way = Path(os.path.realpath(sys.base_prefix)).parts[1]
    shown = {"bin", "lib", "lib64", "usr", "dev", "proc", "tmp", "program.py", way}
    roots = says(run("import os\nprint(*os.listdir('/'), *['dev/' + n for n in os.listdir('/dev')])")).split()
    assert set(roots) <= shown | {"dev/null", "dev/urandom", "dev/shm"}


def test_a_home_shows_nothing_but_the_way_to_the_interpreter(run: Run) -> None:
    seen = says(run("import os\nprint(*os.listdir('/root') if os.path.exists('/root') else [])")).split()
    assert set(seen) <= {*Path(os.path.realpath(sys.base_prefix)).parts}


def test_nothing_can_be_written_outside_tmp(run: Run, secret: list[Path]) -> None:
    library = os.path.realpath(os.path.dirname(os.__file__))
    places = ["/", "/usr/bin", "/lib/", "/dev", "/dev/..", "/proc", library, str(secret[0].parent)]
    program = f"""
import os
for place in {places}:
    try: open(place + '/mark', 'w')
    except OSError: continue
    print(place)
for path in ['/program.py', {os.__file__!r}, os.sys.executable]:
    for harm in (os.remove, lambda p: os.chmod(p, 7), lambda p: open(p, 'a'), lambda p: os.rename(p, 'x')):
        try: harm(path)
        except OSError: continue
        print(path)
"""
    assert says(run(program)) == ""
    assert not os.path.exists(f"{library}/mark")
    # Whoever owns what is there: an ordinary user's interpreter belongs to the program's own user.
    read_only = "import os\nprint(*{bool(os.statvfs(p).f_flag & os.ST_RDONLY) for p in %s})"
    assert says(run(read_only % ["/", "/usr/lib", "/usr/bin", library])) == "True"


def test_what_one_program_writes_the_next_does_not_see(run: Run) -> None:
    assert says(run("open('/tmp/left', 'w').write('x')\nprint('wrote')")) == "wrote"
    assert says(run("import os\nprint(os.listdir('/tmp'))")) == "[]"
    assert not os.path.exists("/tmp/left")


def test_no_process_of_the_host_is_seen_or_reached(run: Run) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        program = f"""
import os
print(sorted(n for n in os.listdir('/proc') if n.isdigit()))
for pid in ({other.pid}, {os.getpid()}, -1, 1):
    for number in (2, 9, 15, 19):
        try: os.kill(pid, number)
        except (ProcessLookupError, PermissionError): continue
        print(pid, number)
print('alive')
"""
        seen = says(run(program)).splitlines()
        assert seen[0] == "['1', '2']"
        assert seen[-1] == "alive"  # kernel drops what is sent to process 1 from inside
        assert all(line.startswith("1 ") for line in seen[1:-1])
        assert other.poll() is None
        other.kill()


def test_the_watch_cannot_be_read_traced_or_changed(run: Run) -> None:
    program = """
import ctypes, os
libc = ctypes.CDLL(None)
PTRACE_ATTACH, PTRACE_TRACEME = 16, 0
print(libc.ptrace(PTRACE_ATTACH, 1, 0, 0), libc.ptrace(PTRACE_TRACEME, 0, 0, 0))
for path in ('/proc/1/mem', '/proc/1/environ', '/proc/1/fd/0', '/proc/1/root/x'):
    try: open(path, 'r+b' if path.endswith('mem') else 'rb')
    except PermissionError: continue
    except FileNotFoundError: pass
    print(path)
"""
    assert says(run(program)) == "-1 -1"


def test_environment_and_open_files_of_the_caller_stay_behind(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
    with (tmp_path / "open").open("w") as stream:
        os.set_inheritable(stream.fileno(), True)
        program = """
import os
print(sorted(os.environ))
for n in range(3, 64):
    try: os.fstat(n)
    except OSError: continue
    print(n)
"""
        names = says(run(program))
    assert set(eval(names)) <= {"HOME", "LANG", "LC_CTYPE", "PATH"}


# Programs that reach out.


def test_no_network_is_reached_not_even_this_machine(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"""
import socket
for address in (('127.0.0.1', {port}), ('192.0.2.1', 80)):
    try: socket.create_connection(address, 1)
    except OSError as error: print(error.strerror)
"""
        assert says(run(program)).splitlines() == ["Network is unreachable"] * 2
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        server.setblocking(True)
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize("abstract", [False, True])
def test_no_unix_socket_of_the_host_is_reached(run: Run, tmp_path: Path, abstract: bool) -> None:
    path = f"\0{secrets.token_hex(8)}" if abstract else str(tmp_path / "raylet")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        program = f"""
import socket
try: socket.socket(socket.AF_UNIX).connect({path!r}); print('reached')
except OSError: print('not there')
"""
        assert says(run(program)) == "not there"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@pytest.mark.parametrize(
    "call",
    [
        "libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None)",
        "libc.umount2(b'/tmp', 2)",
        "libc.mount(None, b'/', None, 0x1020, None)",
        "libc.chroot(b'/tmp')",
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.setns(os.open('/proc/self/ns/user', 0), 0)",
        "libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0)",
        "libc.syscall(435, ctypes.create_string_buffer(88), 88)",
        "libc.setuid(0)",
        "libc.sethostname(b'x', 1)",
    ],
)
def test_no_call_changes_mounts_namespaces_or_users(run: Run, call: str) -> None:
    assert says(run(f"import ctypes, os\nlibc = ctypes.CDLL(None)\nprint({call})")) == "-1"


# Nothing is left.


def test_a_daemon_does_not_outlive_its_program(run: Run) -> None:
    daemon = """
import os, signal, time
if not os.fork():
    os.setsid()
    if not os.fork():
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        print('daemon', flush=True)
        time.sleep(60)
    os._exit(0)
os.wait()
time.sleep(0.3)
"""
    result = run(daemon)
    assert (result.outcome, result.stdout) == ("passed", "daemon\n")
    assert result.seconds < 1.4


def test_when_the_caller_is_killed_the_program_dies_with_it() -> None:
    name = f"sb{secrets.token_hex(5)}"
    program = f"{called(name)}\nimport os, time\nos.fork()\nos.setsid()\ntime.sleep(60)"
    code = f"from largeforge_ray.teach.sandbox import *; run_code({program!r}, limits=Limits(seconds=60))"
    with subprocess.Popen([sys.executable, "-c", code]) as caller:
        wait_until(lambda: len(processes(name)) == 2)
        os.kill(caller.pid, signal.SIGKILL)
    wait_until(lambda: processes(name) == [])


def wait_until(true: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)

"""Runs Python that a model wrote, where it can neither see nor change anything of this machine.

    run_code("assert 1 + 1 == 2").outcome   # "passed"

The walls are in ``jail``: namespaces, a minimal read-only root, resource limits and a filter of system calls.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from largeforge_ray.errors import ResourceError

JAIL = Path(__file__).with_name("jail.py")
Outcome = Literal["passed", "failed", "timeout", "memory", "output", "killed"]

SETUP_S = 30
"""Beyond the time limit: a machine too busy to raise the walls by then is reported, not waited for."""
OPEN_FILES = 64
SWITCHES = {
    "/proc/sys/user/max_user_namespaces": ("0", "sysctl -w user.max_user_namespaces=10000"),
    "/proc/sys/kernel/unprivileged_userns_clone": ("0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
}
CONTAINER = (
    "in a container allow user namespaces and an unmasked /proc (Docker: --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined --security-opt systempaths=unconfined; Kubernetes: hostUsers: false, "
    "procMount: Unmasked)"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use, together with all it starts; ``cpu_s`` is a limit of each process.

    ``seconds`` is wall time and ``processes`` counts threads too. ``memory_bytes`` is what all have resident
    and what each may map; ``file_bytes`` is the size of one file, ``disk_bytes`` that of its /tmp.
    """

    seconds: float = 10.0
    cpu_s: int = 10
    memory_bytes: int = 512 * 1024**2
    processes: int = 16
    output_bytes: int = 1024**2
    file_bytes: int = 16 * 1024**2
    disk_bytes: int = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class CodeResult:
    """How a program ended, the last 4 KiB of what it wrote, and its wall time."""

    outcome: Outcome
    stdout: str
    stderr: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def run_code(program: str, *, limits: Limits = Limits()) -> CodeResult:
    """Run ``program`` with the interpreter of this environment and its standard library alone.

    When it returns, no process of the program is left. Raises ``ResourceError`` if the machine lacks
    a wall: nothing ever runs outside. It does not defend against flaws of the kernel.
    """
    answer = _call_jail(program, limits)
    if "refused" in answer:
        raise ResourceError(f"generated code cannot be contained here: {answer['refused']}; {_remedy()}")
    stderr = answer["stderr"]
    outcome = answer["stopped"] or _outcome(answer["status"], stderr)
    return CodeResult(outcome, answer["stdout"], stderr, answer["seconds"])


@cache
def available() -> str | None:
    """Why generated code cannot be contained on this machine, None if it can. Tried once a process."""
    try:
        run_code("pass")
    except ResourceError as error:
        return str(error)
    return None


def _call_jail(program: str, limits: Limits) -> dict[str, Any]:
    python = os.path.realpath(sys.executable)
    job = {
        "caller": os.getpid(),
        "python": python,
        "program": program,
        "shown": _shown(os.path.realpath(sys.base_prefix)),
        "limits": _rlimits(limits),
        **{name: getattr(limits, name) for name in ("seconds", "memory_bytes", "output_bytes", "disk_bytes")},
    }
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-B", str(JAIL)],
            input=json.dumps(job).encode(),
            capture_output=True,
            env={},
            start_new_session=True,
            timeout=limits.seconds + SETUP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ResourceError(
            f"the sandbox was not ready after {SETUP_S} s; this machine is too busy, run less at once"
        ) from None
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["ended without an answer"])[
            -1
        ]
        answer = {"refused": last}
    return answer


def _shown(prefix: str) -> list[str]:
    """What the program sees of the host: interpreter, shared libraries, commands and time zones."""
    roots = dict.fromkeys(("", "/usr", prefix))
    return [f"{root}/{name}" for root in roots for name in ("bin", "lib", "lib64")] + ["/usr/share/zoneinfo"]


def _rlimits(limits: Limits) -> list[tuple[str, int, int]]:
    # An ordinary user is the program's user too, so the two processes of the walls count.
    processes = limits.processes + (0 if os.geteuid() == 0 else 2)
    same = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_NPROC": processes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": OPEN_FILES,
        **dict.fromkeys(("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"), 0),
    }
    # The second second is for the kernel to kill what ignores the first one's signal.
    return [("RLIMIT_CPU", limits.cpu_s, limits.cpu_s + 1), *((name, n, n) for name, n in same.items())]


def _outcome(status: int, stderr: str) -> Outcome:
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return "passed"
    if code < 0:
        return "timeout" if -code == signal.SIGXCPU else "killed"
    return "memory" if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError") else "failed"


def _remedy() -> str:
    for path, (bad, fix) in SWITCHES.items():
        if Path(path).is_file() and Path(path).read_text(encoding="ascii").strip() == bad:
            return fix
    return CONTAINER

"""The walls of the sandbox: a script that ``sandbox`` starts, which imports nothing of this project.

    caller -> warden -> init, process 1 of the new namespaces -> the program

The warden enters the namespaces, init builds the root and watches, and the program has no capabilities and no
way to them. When init ends, the kernel ends every process of its namespace before the warden's wait returns;
when the caller dies, the warden is killed, and init with it. Outside the namespaces the program is never
root, because RLIMIT_NPROC does not bind root; each sandbox is counted alone (kernel 5.14 and newer).

``unshare`` and bubblewrap are not used: run by root, neither keeps root for reaching an interpreter below
/root and gives the program another user as well.

Stdin is a JSON job. Stdout is JSON too: ``status``, ``stopped``, ``seconds``, ``stdout`` and ``stderr``, or
``refused`` with the step that failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time

TYPE_CHECKING = False  # with typing, platform and pathlib a start would take half as long again
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

USER = 65534
NEW_NAMESPACES = 0x7E020000  # user, mount, pid, network, ipc, uts and cgroup
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    *(1, 2, 4, 8, 0x20, 0x1000, 0x4000, 0x40000),
)
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
ROOT_BYTES = 1024 * 1024
TMP_FILES = 4096
TAIL_BYTES = 4096
WATCH_S = 0.02

# First what holds memory that no process shows, so that no limit on processes sees it; then what reaches into
# other processes or deep into the kernel.
DENIED = (
    *("memfd_create", "memfd_secret", "shmget", "msgget", "vmsplice", "io_uring_setup"),
    *("ptrace", "process_vm_readv", "process_vm_writev", "unshare", "setns", "add_key", "request_key"),
    *("keyctl", "bpf", "perf_event_open", "userfaultfd"),
)
# Of each machine: how the kernel names it, the numbers of DENIED, and those of clone and mmap.
NUMBERS = {
    "x86_64": (
        0xC000003E,
        *(319, 447, 29, 68, 278, 425, 101, 310, 311, 272, 308, 248, 249, 250, 321, 298, 323, 56, 9),
    ),
    "aarch64": (
        0xC00000B7,
        *(279, 447, 194, 186, 75, 425, 117, 270, 271, 97, 268, 217, 218, 219, 280, 241, 282, 220, 222),
    ),
}
SYS_CLONE3 = 435
HIDDEN_MAPPING = 0x21  # MAP_SHARED and MAP_ANONYMOUS: it outlives its pages' last mapping

libc = ctypes.CDLL(None, use_errno=True)


def check(step: str, result: int) -> None:
    """Raise ``OSError`` that names the step, if a call into libc failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")


def prctl(step: str, option: int, value: int, pointer: Any = 0) -> None:
    check(step, libc.prctl(option, ctypes.c_ulong(value), pointer, 0, 0))


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = [None if a is None else a.encode() for a in (source, target, kind)]
    check(f"mount {target}", libc.mount(*arguments, ctypes.c_ulong(flags), options.encode() or None))


def enter_namespaces() -> None:
    """Root stays root inside, to reach what only root may read, with USER beside it for the program."""
    root = os.geteuid() == 0
    uids = f"0 0 1\n{USER} {USER} 1" if root else f"{USER} {os.geteuid()} 1"
    gids = f"0 0 1\n{USER} {USER} 1" if root else f"{USER} {os.getegid()} 1"
    if root:
        os.setgroups([])
    ours, theirs = os.pipe()
    warden = os.getpid()
    helper = os.fork()
    if not helper:
        # Only a process outside can map more than itself.
        os.close(theirs)
        if not os.read(ours, 1):
            os._exit(0)
        write_maps(warden, {"setgroups": "" if root else "deny", "uid_map": uids, "gid_map": gids})
    check("unshare", libc.unshare(NEW_NAMESPACES))
    os.write(theirs, b"!")
    number = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if number:
        raise OSError(number, f"map the user: {os.strerror(number)}")
    os.close(ours)
    os.close(theirs)


def write_maps(process: int, maps: dict[str, str]) -> NoReturn:
    """Exit with the number of the error, or 0."""
    try:
        for name, text in maps.items():
            if text:
                with open(f"/proc/{process}/{name}", "w") as stream:
                    stream.write(text)
    except OSError as error:
        os._exit(error.errno or 1)
    os._exit(0)


def build_root(job: dict[str, Any]) -> None:
    """A read-only root of ``job['shown']`` alone, with a small writable /tmp and this namespace's /proc."""
    os.umask(0o022)  # the caller's may hide the root from the program's user
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    program = job["program"].encode("utf-8", "replace")
    # Seen from the new root the host stands below /host, its own /tmp included.
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={ROOT_BYTES + len(program)},mode=755")
    os.mkdir("/tmp/host")
    check("pivot_root", libc.pivot_root(b"/tmp", b"/tmp/host"))
    os.chdir("/")
    for path in job["shown"]:
        show(path)
    for folder in ("/dev", "/proc", "/tmp"):
        os.makedirs(folder, exist_ok=True)
    for device in ("/dev/null", "/dev/urandom"):
        os.mknod(device)
        mount(f"/host{device}", device, None, MS_BIND)
    size = f"size={job['disk_bytes']},nr_inodes={TMP_FILES},mode=1777"
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, size)
    os.symlink("/tmp", "/dev/shm")  # where POSIX semaphores live
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid")
    with open("/program.py", "wb") as stream:
        stream.write(program)
    check("leave the host's root", libc.umount2(b"/host", MNT_DETACH))
    os.rmdir("/host")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def show(path: str) -> None:
    """The host's ``path`` at the same place, read-only and without what makes a file more than its bytes."""
    host = f"/host{path}"
    if os.path.islink(host):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(host), path)
    elif os.path.isdir(host):
        os.makedirs(path, exist_ok=True)
        mount(host, path, None, MS_BIND | MS_REC)
        attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
        arguments = (AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))
        check(f"make {path} read-only", libc.syscall(SYS_MOUNT_SETATTR, *arguments))


def filter_calls() -> None:
    """Refuse DENIED system calls with EPERM, for good and for all that follows (seccomp)."""
    architecture, *numbers = NUMBERS[os.uname().machine]
    (clone, mmap), denied = numbers[len(DENIED) :], numbers[: len(DENIED)]
    load, equal, at_least, any_bit, conjunction, ret = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    low_of_argument = (16, 24, 32, 40)
    code = [
        *((load, 0, 0, 4), (equal, 1, 0, architecture), (ret, 0, 0, kill), (load, 0, 0, 0)),
        # The x32 calls of x86_64 are other numbers for the same.
        *((at_least, 0, 1, 0x40000000), (ret, 0, 0, eperm)),
        *(step for number in denied for step in ((equal, 0, 1, number), (ret, 0, 0, eperm))),
        # Its flags lie behind a pointer; libc falls back to clone.
        *((equal, 0, 1, SYS_CLONE3), (ret, 0, 0, enosys)),
        *((equal, 0, 3, clone), (load, 0, 0, low_of_argument[0])),
        *((any_bit, 0, 5, NEW_NAMESPACES), (ret, 0, 0, eperm)),
        *((equal, 0, 3, mmap), (load, 0, 0, low_of_argument[3]), (conjunction, 0, 0, HIDDEN_MAPPING)),
        *((equal, 1, 0, HIDDEN_MAPPING), (ret, 0, 0, allow), (ret, 0, 0, eperm)),
    ]
    packed = b"".join(struct.pack("HBBI", *step) for step in code)
    text = ctypes.create_string_buffer(packed, len(packed))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(text)), 16)
    prctl("filter system calls", PR_SET_SECCOMP, 2, header)


def become_program(job: dict[str, Any], outputs: tuple[int, int]) -> NoReturn:
    """Give everything up, then start the interpreter: only the three streams are left of this process."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number, descriptor in enumerate((os.open("/dev/null", os.O_RDONLY), *outputs)):
        os.dup2(descriptor, number)
    for name, soft, hard in job["limits"]:
        resource.setrlimit(getattr(resource, name), (soft, hard))
    if os.getuid() == 0:
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    os.chdir("/tmp")
    prctl("give up privileges", PR_SET_NO_NEW_PRIVS, 1)
    filter_calls()
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
    os.execve(job["python"], [job["python"], "-I", "-S", "-B", "/program.py"], environment)


def resident_bytes() -> int:
    """Of all processes but init, shared pages counted in each that maps them."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as stream:
                    pages += int(stream.read().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
    return pages * resource.getpagesize()


def watch(program: int, job: dict[str, Any], outputs: tuple[int, int]) -> dict[str, Any]:
    """Wait for the program, or stop it when the whole of it passes a limit; then end all that it started."""
    started = time.monotonic()
    limits: dict[str, Callable[[], bool]] = {
        "timeout": lambda: time.monotonic() - started > job["seconds"],
        "memory": lambda: resident_bytes() > job["memory_bytes"],
        "output": lambda: sum(os.fstat(output).st_size for output in outputs) > job["output_bytes"],
    }
    status, stopped = None, None
    while status is None and stopped is None:
        signal.sigtimedwait([signal.SIGCHLD], WATCH_S)
        status = reap(program)
        stopped = next((name for name, passed in limits.items() if passed()), None)
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.kill(-1, signal.SIGKILL)
    tails = [
        os.pread(output, TAIL_BYTES, max(0, os.fstat(output).st_size - TAIL_BYTES)) for output in outputs
    ]
    stdout, stderr = (tail.decode("utf-8", "replace") for tail in tails)
    return {"status": status, "stopped": stopped, "seconds": seconds, "stdout": stdout, "stderr": stderr}


def reap(program: int) -> int | None:
    """The program's wait status, None while it runs; orphans that ended are taken from the process table."""
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if process in (0, program):
            return status if process else None


def run_init(job: dict[str, Any]) -> dict[str, Any]:
    """Process 1: what it returns is all that the caller learns."""
    prctl("die with the warden", PR_SET_PDEATHSIG, signal.SIGKILL)
    # From inside its namespace process 1 gets only signals it handles, and Python handles this one.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    build_root(job)
    outputs = (os.memfd_create("stdout"), os.memfd_create("stderr"))
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    failure, reported = os.pipe()
    program = os.fork()
    if not program:
        try:
            become_program(job, outputs)
        except (OSError, ValueError) as error:
            os.write(reported, str(error).encode())
            os._exit(1)
    os.close(reported)
    if problem := os.read(failure, TAIL_BYTES):
        return {"refused": problem.decode()}
    return watch(program, job, outputs)


def main() -> None:
    """The warden: it stays outside the process namespace, so that its wait sees the end of all of it."""
    job = json.load(sys.stdin)
    answer: dict[str, Any] | None = None
    try:
        if os.uname().machine not in NUMBERS:
            raise OSError(
                f"the system calls of '{os.uname().machine}' are not known, only of {', '.join(NUMBERS)}"
            )
        enter_namespaces()
        # After it, because a change of privileges takes the signal back.
        prctl("die with the caller", PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != job["caller"]:
            return
        if init := os.fork():
            os.waitpid(init, 0)
            return
        answer = run_init(job)
    except OSError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()

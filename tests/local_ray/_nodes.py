"""A Ray cluster of machines that share nothing but a network: each node in namespaces of its own.

A node has its own address on a bridge, its own /tmp and home, and Ray as `ray start` starts it. Pulling its
cable is ``cut``, pulling its plug is ``kill``. It needs root and iproute2; tests that use it skip without.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from tests.local_ray.conftest import ENVIRONMENT, Done

BRIDGE, NET = "lfbridge", "10.77.0"
HERE = f"{NET}.1"
"""Our own address on the bridge, for what all nodes reach: the object store, Redis."""
GCS_PORT, REDIS_PORT = 6379, 6380
RAY = Path(sys.executable).with_name("ray")
BIN = RAY.parent


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def possible() -> str | None:
    """Why such a cluster cannot be made here; None if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    try:
        ip("link", "add", "name", BRIDGE, "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"no bridge can be made: {error.stderr.strip()}"
    ip("link", "delete", BRIDGE)
    return None


@dataclass
class Node:
    """One machine. ``folder`` is what it sees as /tmp."""

    number: int
    folder: Path
    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    started: int = 0

    @property
    def name(self) -> str:
        return f"lfnode{self.number}"

    @property
    def address(self) -> str:
        return f"{NET}.{10 + self.number}"

    def build(self) -> None:
        (self.folder / "home").mkdir(parents=True)
        ip("netns", "add", self.name)
        ip("link", "add", f"lfv{self.number}", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", f"lfv{self.number}", "master", BRIDGE, "up")
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def inside(self, *words: str) -> list[str]:
        """The command line of ``words`` on this node."""
        mount = f'mount --bind {self.folder} /tmp && cd /tmp && exec "$@"'
        return [
            *("ip", "netns", "exec", self.name, "unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", mount, "sh", *words),
        ]

    def start(self, *options: str) -> None:
        self.started += 1
        command = [
            *(str(RAY), "start", "--block", "--disable-usage-stats", f"--node-ip-address={self.address}"),
            *options,
        ]
        log = (self.folder / "ray.log").open("a")
        # What lost its head for good ends by itself; a signal to the group ends the rest.
        self.process = self.popen(*command, log=log)

    def popen(self, *words: str, log: IO[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.inside(*words), env=self.env, stdout=log, stderr=log, text=True, start_new_session=True
        )

    def run(self, *words: str, timeout: float = 600) -> Done:
        """A command on this node, to its end."""
        began = time.monotonic()
        done = subprocess.run(
            self.inside(*words), env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr, time.monotonic() - began)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """What runs on this node and has ``title`` in its command line; oldest first."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        )
        found = []
        for pid in map(int, listed.stdout.split()):
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                if title in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda p: p.pid)

    def kill(self) -> None:
        """Pull the plug: everything on it is gone at once."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait(30)
            self.process = None
        shutil.rmtree(self.folder / "ray", ignore_errors=True)

    def cut(self) -> None:
        ip("link", "set", f"lfv{self.number}", "down")

    def mend(self) -> None:
        ip("link", "set", f"lfv{self.number}", "up")

    def remove(self) -> None:
        self.kill()
        ip("netns", "delete", self.name)


@dataclass
class Nodes:
    """A head without CPUs of its own, and workers."""

    folder: Path
    env: dict[str, str]
    redis: str | None = None
    nodes: list[Node] = field(default_factory=list)

    @property
    def head(self) -> Node:
        return self.nodes[0]

    @property
    def workers(self) -> list[Node]:
        return self.nodes[1:]

    def add(self) -> Node:
        node = Node(len(self.nodes), self.folder / f"n{len(self.nodes)}", self.env)
        self.nodes.append(node)
        node.build()
        return node

    def start_head(self) -> None:
        """It remembers what it knew if there is a Redis."""
        remembering = () if self.redis is None else (f"--redis-password={self.redis}",)
        self.head.start(
            *("--head", f"--port={GCS_PORT}", "--num-cpus=0", "--dashboard-host=127.0.0.1"),
            *("--object-store-memory=200000000", *remembering),
        )

    def start_worker(self, node: Node, cpus: int) -> None:
        node.start(
            *(f"--address={self.head.address}:{GCS_PORT}", f"--num-cpus={cpus}"),
            "--object-store-memory=400000000",
        )

    def alive(self) -> int:
        """How many nodes the cluster counts."""
        count = (
            "import ray; ray.init('auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        done = self.head.run(str(BIN / "python"), "-c", count, timeout=60)
        return int(done.out.split()[-1]) if done.code == 0 else 0

    def submit(self, *words: str, work: Path, timeout: float = 900) -> Done:
        """``ray job submit`` from the head, of a working folder that only the head has."""
        return self.head.run(
            *(str(RAY), "job", "submit", "--address", "http://127.0.0.1:8265"),
            *("--working-dir", f"/tmp/{work.name}", "--", "python", "-m", *words),
            timeout=timeout,
        )


@contextmanager
def redis(password: str) -> Iterator[str]:
    """A Redis that all nodes reach; its address."""
    words = ("--bind", HERE, "--port", str(REDIS_PORT), "--requirepass", password, "--save", "")
    process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
    try:
        yield f"{HERE}:{REDIS_PORT}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def nodes(folder: Path, *cpus: int, remembering: bool = False, **env: str) -> Iterator[Nodes]:
    """A head and a worker for each of ``cpus``; ``env`` is added to every node's environment.

    With ``remembering`` a Redis keeps what the head knows, and a head that is started again goes on.
    """
    base = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("AWS_")}
    base |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": "/tmp/home",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    made = Nodes(folder, base | env, secrets.token_hex(16) if remembering else None)
    ip("link", "add", "name", BRIDGE, "type", "bridge")
    beside = ExitStack()
    try:
        ip("address", "add", f"{HERE}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        if made.redis is not None:
            made.env["RAY_REDIS_ADDRESS"] = beside.enter_context(redis(made.redis))
        for _ in range(1 + len(cpus)):
            made.add()
        made.start_head()
        until = time.monotonic() + 90
        for node, number in zip(made.workers, cpus, strict=True):
            made.start_worker(node, number)
        while made.alive() < 1 + len(cpus):
            assert time.monotonic() < until, (made.head.folder / "ray.log").read_text()
            time.sleep(1)
        yield made
    finally:
        for node in made.nodes:
            node.remove()
        beside.close()
        ip("link", "delete", BRIDGE)

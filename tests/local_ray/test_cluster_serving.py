"""A router served over nodes, the head holding none of it, while workers, the head and cables are lost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.local_ray._load import Load, load
from tests.local_ray._nodes import BIN, Node, Nodes, nodes, possible
from tests.local_ray._server import Server, wait_for
from tests.local_ray.conftest import Forge, largeforge

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(possible() is not None, reason=str(possible())),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="the head's memory needs redis-server"),
]
PORT, SETTLED_S = 8000, 10


@dataclass
class Served:
    """The application on two workers, asked at either."""

    nodes: Nodes
    key: str

    def at(self, node: Node) -> Server:
        return Server(node.process, f"http://{node.address}:{PORT}")  # type: ignore[arg-type]

    def replicas(self, node: Node) -> int:
        """Engines that the routers of a node know of."""
        try:
            cards = self.at(node).request("GET", "/v1/experts", key=self.key)[1]["data"]
        except OSError:
            return 0
        return int(next(card["replicas"] for card in cards if card["name"] == "base"))

    def whole(self) -> bool:
        """Both engines answer, as the worker that stays knows; the router of a lost one may move to it."""
        return self.replicas(self.nodes.workers[0]) == 2

    def whole_again(self) -> float:
        """Seconds until both engines answer again."""
        seconds = wait_for(self.whole, 300)
        # It answers before Serve has taken it over, and who is controller next replaces what it had not.
        time.sleep(SETTLED_S)
        return seconds


@pytest.fixture(scope="module")
def served(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two engines and two routers on workers of two CPUs; the store is a folder that all nodes see alike."""
    mounted = Path(tempfile.mkdtemp(prefix="largeforge-mounted-", dir="/var/tmp"))
    try:
        shutil.copytree(forge.store, mounted / "forge", symlinks=True)
        made = largeforge(
            "keys", "--file", str(mounted / "keys.yaml"), "new", "tests", cwd=mounted, timeout=60
        )
        assert made.code == 0, made.err
        args = {
            "store": str(mounted / "forge"),
            "router": "live",
            "host": "0.0.0.0",
            "port": PORT,
            "engine_host": "0.0.0.0",
            "routers": 2,
            "router_cpus": 0.5,
            "min_replicas": 2,
            "max_replicas": 2,
            "max_num_seqs": 4,
            "keys": str(mounted / "keys.yaml"),
        }
        with nodes(tmp_path_factory.mktemp("nodes"), 2, 2, remembering=True) as cluster:
            app = {
                "name": "largeforge",
                "route_prefix": "/",
                "import_path": "serve_apps.forge:app",
                "args": args,
            }
            config = {"proxy_location": "Disabled", "applications": [app]}
            (cluster.head.folder / "serve.yaml").write_text(yaml.safe_dump(config))
            done = cluster.head.run(str(BIN / "serve"), "deploy", "/tmp/serve.yaml")
            assert done.code == 0, done.out + done.err
            serving = Served(cluster, made.out.split()[-1])
            print(f"served after {serving.whole_again():.0f} s")
            yield serving
    finally:
        shutil.rmtree(mounted)


def told_of(made: Load, lost: float, within_s: float) -> int:
    """How many were not answered: none of them in silence, and none that began later than ``within_s``."""
    assert all(one.honest for one in made.outcomes), statuses(made)
    assert all(one.good for one in made.since(lost + within_s)), statuses(made)
    return sum(not one.good for one in made.outcomes)


def statuses(made: Load) -> str:
    return str(Counter((one.status, one.told) for one in made.outcomes))


def test_engines_and_routers_are_on_the_workers_and_the_head_holds_none(served: Served) -> None:
    for node in served.nodes.workers:
        assert node.processes("VLLM::EngineCore")
        assert node.processes("RouterDeployment")
    assert not served.nodes.head.processes("VLLM")
    assert not served.nodes.head.processes("RouterDeployment")
    with load(served.at(served.nodes.workers[0]).url, key=served.key) as made:
        time.sleep(5)
    assert made.outcomes
    assert all(one.good for one in made.outcomes), statuses(made)


def test_a_lost_worker_takes_its_own_answers_and_no_others(served: Served) -> None:
    first, second = served.nodes.workers
    with load(served.at(first).url, key=served.key) as made:
        time.sleep(3)
        lost = time.monotonic()
        second.kill()
        time.sleep(10)
    told = told_of(made, lost, 6)
    served.nodes.start_worker(second, 2)
    back = served.whole_again()
    print(
        f"worker killed: {told} of {len(made.outcomes)} requests not answered, whole again {back:.0f} s later"
    )


def test_a_lost_head_is_not_noticed_and_control_goes_on_when_it_is_back(served: Served) -> None:
    first, second = served.nodes.workers
    with load(served.at(first).url, key=served.key) as made:
        time.sleep(3)
        served.nodes.head.kill()
        time.sleep(10)
        served.nodes.start_head()
        began = time.monotonic()
        wait_for(lambda: served.nodes.alive() == 3, 120)
        joined = time.monotonic() - began
        wait_for(lambda: "RUNNING" in status(served), 120)
        controlled = time.monotonic() - began
        time.sleep(5)
    assert all(one.good for one in made.outcomes), statuses(made)
    print(f"head killed for 10 s: {len(made.outcomes)} requests answered; after its start all nodes came in")
    print(f"{joined:.0f} s, and Serve in control in {controlled:.0f} s")
    second.processes("VLLM::EngineCore")[0].kill()
    wait_for(lambda: not served.whole(), 60)
    print(f"then an engine killed was replaced after {served.whole_again():.0f} s")


def status(served: Served) -> str:
    return served.nodes.head.run(str(BIN / "serve"), "status", timeout=60).out


def test_a_worker_that_is_cut_off_is_passed_over_until_it_is_back(served: Served) -> None:
    first, second = served.nodes.workers
    with load(served.at(first).url, key=served.key) as made:
        time.sleep(3)
        cut = time.monotonic()
        second.cut()
        time.sleep(20)
        second.mend()
        time.sleep(5)
    told = told_of(made, cut, 10)
    back = served.whole_again()
    print(f"worker cut off for 20 s: {told} of {len(made.outcomes)} not answered, whole {back:.0f} s later")

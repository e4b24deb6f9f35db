"""The same manifest on machines that share no disk: jobs over their nodes, and nodes that are lost."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from largeforge_ray.errors import StoreError
from largeforge_ray.store import RowJournal, Store
from tests.local_ray._nodes import HERE, Node, Nodes, nodes, possible
from tests.local_ray._server import wait_for
from tests.local_ray.conftest import SHIPPED, Done

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(possible() is not None, reason=str(possible())),
]
BUCKET = "cluster-bucket"
STORE = f"s3://{BUCKET}/forge"


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An object store that all nodes reach; its settings."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="0.0.0.0", port=0)
    server.start()
    port = server.get_host_and_port()[1]
    yield {
        "AWS_ENDPOINT_URL": f"http://{HERE}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture(scope="module")
def three(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A head without CPUs and two workers of one CPU each."""
    with nodes(tmp_path_factory.mktemp("nodes"), 1, 1, **s3) as made:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3.items():
                patch.setenv(name, value)
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield made


@pytest.fixture(scope="module")
def work(three: Nodes) -> Path:
    """What is submitted: a folder of the head alone."""
    folder = three.head.folder / "work"
    folder.mkdir()
    lines = (SHIPPED / "orders.jsonl").read_text().splitlines()[:96]
    (folder / "orders.jsonl").write_text("\n".join(lines) + "\n")
    manifest = yaml.safe_load((SHIPPED / "quickstart.yaml").read_text())
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    stages["rows"]["engines"] = 2
    stages["orders"] |= {"workers": 2, "epochs": 2, "checkpoint_every": 4}
    (folder / "small.yaml").write_text(yaml.safe_dump(manifest, sort_keys=False))
    return folder


def titles(node: Node) -> list[str]:
    """What the processes of a node call themselves."""
    return [title for process in node.processes() if "::" in (title := title_of(process))]


def title_of(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def run(three: Nodes, work: Path, store: str = STORE) -> Done:
    return three.submit("train_jobs.run", "--manifest", "small.yaml", "--store", store, work=work)


def keys(store: str) -> dict[str, str]:
    return {a.name: a.key for a in Store(store).artifacts()}


@contextmanager
def watched(three: Nodes) -> Iterator[dict[str, set[str]]]:
    """The titles of our processes that are seen on each node meanwhile."""
    seen: dict[str, set[str]] = {node.name: set() for node in three.nodes}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            for node in three.nodes:
                seen[node.name] |= set(titles(node))

    watching = threading.Thread(target=watch)
    watching.start()
    yield seen
    over.set()
    watching.join()


@pytest.fixture(scope="module")
def loop(three: Nodes, work: Path) -> tuple[Done, dict[str, set[str]]]:
    """The whole loop as a job, and what was seen meanwhile."""
    with watched(three) as seen:
        done = run(three, work)
    return done, seen


def test_the_loop_runs_over_nodes_that_share_no_disk(
    loop: tuple[Done, dict[str, set[str]]], three: Nodes
) -> None:
    done, seen = loop
    print("\n".join(done.out.splitlines()[-14:]))
    assert done.code == 0, done.out + done.err
    assert re.search(r"^  live +done", done.out, re.MULTILINE)
    for worker in three.workers:
        assert any("VLLM" in name for name in seen[worker.name]), seen
    assert not any("VLLM" in name for name in seen[three.head.name]), seen
    assert {"rows", "orders", "outcomes", "live"} <= keys(STORE).keys()


def test_submitted_again_it_runs_nothing_and_a_wrong_one_fails_with_its_message(
    loop: tuple[Done, dict[str, set[str]]], three: Nodes, work: Path
) -> None:
    again = run(three, work)
    assert again.code == 0, again.out
    assert "nothing to do" in again.out, again.out
    wrong = three.submit("train_jobs.run", "--manifest", "missing.yaml", work=work)
    assert wrong.code != 0
    assert "missing.yaml" in wrong.out + wrong.err


def test_a_run_that_loses_its_nodes_makes_what_an_unbroken_one_makes(
    loop: tuple[Done, dict[str, set[str]]], three: Nodes, work: Path
) -> None:
    """A plug is pulled in the farm, a cable in the training; both come back."""
    store = f"s3://{BUCKET}/broken"
    made: list[Done] = []
    running = threading.Thread(target=lambda: made.append(run(three, work, store)))
    running.start()
    first, second = three.workers
    until(lambda: journalled(store) > 10, running)
    began = time.monotonic()
    second.kill()
    time.sleep(5)
    three.start_worker(second, 1)
    print(f"farm: a node lost at {journalled(store)} rows, back after {time.monotonic() - began:.0f} s")
    until(lambda: any("TrainWorker" in title for title in titles(first)), running)
    until(lambda: checkpointed(store), running)
    began = time.monotonic()
    first.cut()
    time.sleep(30)
    first.mend()
    # Ray has given the node up by then, and what runs there ends; a supervisor starts it again.
    wait_for(lambda: first.process.poll() is not None, 60)
    first.kill()
    three.start_worker(first, 1)
    running.join()
    [done] = made
    print(f"training: a node cut off for 30 s; the run ended {time.monotonic() - began:.0f} s later")
    print("\n".join(line for line in done.out.splitlines() if "journal" in line or "resumed" in line))
    assert done.code == 0, done.out + done.err
    assert f"Ray lost the node {first.address}" in done.out
    assert "(raylet)" not in done.out, done.out
    assert keys(store) == keys(STORE)
    wait_for(lambda: three.alive() == 3, 120)


def journalled(store: str) -> int:
    """Finished rows; 0 while the object store, which is one process here, is too busy to say."""
    with suppress(StoreError):
        journals = Store(store).list("journal")
        return sum(len(RowJournal(Store(store), Path(each).name).done()) for each in journals)
    return 0


def checkpointed(store: str) -> bool:
    with suppress(StoreError):
        return bool(Store(store).list("work"))
    return False


def until(reached: Callable[[], bool], running: threading.Thread, limit_s: float = 400) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert running.is_alive(), "the run ended before"
        assert time.monotonic() < deadline
        time.sleep(0.5)

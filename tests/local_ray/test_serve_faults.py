"""A served router under load while its processes are killed, stopped, replaced and overrun."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import psutil
import pytest

from tests.local_ray._load import ask, load
from tests.local_ray._server import Server, start_server, stop_server, wait_for
from tests.local_ray.conftest import ENVIRONMENT, ROOT, Forge

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TIMEOUT_S = 60
SETTLED_S = 5
ROUTER = "ray::ServeReplica:largeforge:RouterDeployment"


@pytest.fixture(scope="module")
def pair(forge: Forge) -> Iterator[Server]:
    """Two engines of 4 slots each behind two routers."""
    settings = ("routers=2", "max_num_seqs=4", f"request_timeout_s={TIMEOUT_S}", "max_tokens=900")
    more = [word for setting in settings for word in ("--set", setting)]
    server = start_server(forge.store, forge.folder, "--min-replicas", "2", "--max-replicas", "2", *more)
    whole_again(server)
    yield server
    stop_server(server)


def replicas(server: Server) -> int:
    return int(server.experts()["base"]["replicas"])


def processes(server: Server, title: str) -> list[psutil.Process]:
    """Of the server's family, those whose title has it; oldest first."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    found = [p for p in family if title in " ".join(p.cmdline())]
    return sorted(found, key=lambda p: p.create_time())


def whole_again(server: Server, limit_s: float = 180) -> float:
    """Seconds until both engines answer again."""
    seconds = wait_for(lambda: server.is_ready() and replicas(server) == 2, limit_s)
    # An engine answers before Serve has taken it over, and who is controller next replaces what it had not.
    time.sleep(SETTLED_S)
    return seconds


def test_a_killed_engine_is_out_of_rotation_within_two_seconds_and_nothing_is_a_bare_500(
    pair: Server,
) -> None:
    with load(pair.url) as made:
        time.sleep(5)
        killed = time.monotonic()
        processes(pair, "VLLM::EngineCore")[0].kill()
        time.sleep(8)
    assert all(one.good for one in made.outcomes), Counter((one.status, one.told) for one in made.outcomes)
    assert made.good_since(killed + 2) > 0
    print(f"F1: {len(made.outcomes)} requests, all answered, whole again after {whole_again(pair):.1f} s")


def test_a_killed_replica_takes_its_engine_with_it_and_the_other_goes_on(pair: Server) -> None:
    [replica, _] = processes(pair, "ray::ServeReplica:largeforge:engine")
    family = replica.children(recursive=True)
    with load(pair.url) as made:
        time.sleep(2)
        replica.kill()
        gone, alive = psutil.wait_procs(family, timeout=5)
        time.sleep(5)
    assert gone
    assert alive == []
    assert all(one.good for one in made.outcomes), Counter((one.status, one.told) for one in made.outcomes)
    print(f"F1: replica killed, all answered, whole again after {whole_again(pair):.1f} s")


@pytest.mark.parametrize("title", ["ray::ServeReplica:largeforge:engine", "VLLM::EngineCore"])
def test_what_is_stopped_is_a_504_at_the_deadline_and_is_replaced(pair: Server, title: str) -> None:
    [victim, _] = processes(pair, title)
    with load(pair.url, at_once=2) as made:
        time.sleep(2)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(TIMEOUT_S + 5)
    assert all(one.honest for one in made.outcomes), Counter(one.status for one in made.outcomes)
    assert max(one.ended - one.began for one in made.outcomes) < TIMEOUT_S + 2
    wait_for(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE, 180)
    late = sum(one.status == 504 or one.told for one in made.outcomes)
    print(f"F3: {title} stopped: {late} told at the deadline")
    print(f"F3: replaced, whole again {whole_again(pair):.1f} s later")


@pytest.mark.parametrize("title", ["ray::ServeController", "ray::RegistryActor"])
def test_answers_go_on_while_what_controls_them_is_killed(pair: Server, title: str) -> None:
    with load(pair.url) as made:
        time.sleep(1)
        processes(pair, title)[0].kill()
        time.sleep(6)
    assert all(one.good for one in made.outcomes), Counter(one.status for one in made.outcomes)
    wait_for(lambda: processes(pair, title), 60)
    print(
        f"F4: {title} killed, {len(made.outcomes)} requests answered, whole after {whole_again(pair):.1f} s"
    )


def test_a_killed_router_leaves_the_port_to_the_other(pair: Server) -> None:
    with load(pair.url) as made:
        time.sleep(2)
        killed = time.monotonic()
        processes(pair, ROUTER)[0].kill()
        time.sleep(6)
    lost = [one for one in made.outcomes if not one.good]
    assert len(lost) <= 4  # what was on its connections
    assert all(one.began < killed + 0.5 for one in lost)
    wait_for(lambda: len(processes(pair, ROUTER)) == 2, 60)
    whole_again(pair)
    print(f"F4: router killed, {len(lost)} of {len(made.outcomes)} connections lost")


SOAK_S = 600


def faults(pair: Server) -> dict[str, Callable[[], object]]:
    """What may happen to a served router, by name."""

    def kill(title: str) -> Callable[[], object]:
        return lambda: processes(pair, title)[0].kill()

    def pause() -> None:
        core = processes(pair, "VLLM::EngineCore")[0]
        core.send_signal(signal.SIGSTOP)
        time.sleep(5)
        core.send_signal(signal.SIGCONT)

    def leave() -> None:
        words = f"from tests.local_ray._load import ask; ask('{pair.url}', tokens=800)"
        with subprocess.Popen([sys.executable, "-c", words], cwd=ROOT, env=ENVIRONMENT) as child:
            time.sleep(3)
            child.kill()

    def overrun() -> None:
        with ThreadPoolExecutor(80) as pool:
            list(pool.map(lambda _: ask(pair.url), range(80)))

    return {
        "engine killed": kill("VLLM::EngineCore"),
        "replica killed": kill("ray::ServeReplica:largeforge:engine"),
        "engine stopped for 5 s": pause,
        "controller killed": kill("ray::ServeController"),
        "registry killed": kill("ray::RegistryActor"),
        "router killed": kill(ROUTER),
        "client left": leave,
        "80 requests at once": overrun,
    }


def held(pair: Server) -> dict[str, int]:
    """What the whole server holds."""
    family = psutil.Process(pair.process.pid).children(recursive=True)
    return {
        "MiB": sum(p.memory_info().rss for p in family) // 2**20,
        "files": sum(p.num_fds() for p in family),
        "threads": sum(p.num_threads() for p in family),
    }


@pytest.mark.timeout(1200)
def test_ten_minutes_of_random_faults_cost_few_answers_and_leave_nothing_behind(pair: Server) -> None:
    draw, done = random.Random(0), Counter()
    before, began = held(pair), time.monotonic()
    with load(pair.url) as made:
        while time.monotonic() - began < SOAK_S:
            name = draw.choice([*faults(pair)])
            faults(pair)[name]()
            done[name] += 1
            time.sleep(3)
            wait_for(lambda: len(processes(pair, ROUTER)) == 2, 60)
            whole_again(pair)
    after = held(pair)
    accepted = [one for one in made.outcomes if one.status not in (429, 503)]
    good = sum(one.good for one in accepted) / len(accepted)
    print(f"F17: {dict(done)} in {time.monotonic() - began:.0f} s; {good:.2%} of {len(accepted)} accepted")
    print(f"F17: were answered, else {Counter((o.status, o.told) for o in accepted if not o.good)}")
    ends = [began, *sorted(one.ended for one in made.outcomes if one.good)]
    silent = max(after - before for before, after in pairwise(ends))
    print(f"F17: the longest time without an answer was {silent:.1f} s")
    print(f"F17: {len(made.outcomes) - len(accepted)} refused; {before} became {after}")
    assert good >= 0.99
    assert silent < 30
    assert all(after[name] <= 1.1 * number for name, number in before.items())


UPDATE = """
import sys, ray
from ray import serve
from serve_apps.forge import build_app, parse_args
from serve_apps.launch import APP
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
serve.run(build_app(parse_args(*sys.argv[2:])), name=APP, route_prefix="/")
"""


def redeploy(pair: Server, forge: Forge, *settings: str) -> subprocess.CompletedProcess[str]:
    """The same application with other arguments, from a process of its own."""
    [gcs] = processes(pair, "gcs_server")
    ports = {c.laddr.port for c in gcs.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    address = f"127.0.0.1:{min(ports)}"
    port = pair.url.rpartition(":")[2]
    usual = {
        "store": str(forge.store),
        "port": port,
        "min_replicas": "2",
        "max_replicas": "2",
        "routers": "2",
        "max_num_seqs": "4",
        "request_timeout_s": str(TIMEOUT_S),
        "max_tokens": "900",
        "admin_token": str(forge.folder / "admin-token"),
    }
    merged = usual | dict(setting.split("=", 1) for setting in settings)
    words = [f"{name}={value}" for name, value in merged.items()]
    return subprocess.run(
        [sys.executable, "-c", UPDATE, address, *words],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_rolling_update_fails_no_request(pair: Server, forge: Forge) -> None:
    before = {p.pid for p in processes(pair, "ray::ServeReplica:largeforge:engine")}
    with load(pair.url) as made:
        done = redeploy(pair, forge, "max_tokens=899")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: replicas(pair) == 2, 60)
    after = {p.pid for p in processes(pair, "ray::ServeReplica:largeforge:engine")}
    assert not before & after
    bad = [one for one in made.outcomes if not one.good]
    told = [(o.status, o.told, round(o.ended - o.began, 1)) for o in bad]
    print(f"F5: {len(made.outcomes)} requests meanwhile, not answered: {told}")
    assert bad == []


def test_an_update_that_fails_leaves_the_other_engine_answering_until_it_is_rolled_back(
    pair: Server, forge: Forge
) -> None:
    with load(pair.url, at_once=2) as made:
        done = redeploy(pair, forge, "engine_host=203.0.113.1")
        assert done.returncode != 0
        assert "Failed to update the deployments" in done.stderr
        failed = len(made.outcomes)
        done = redeploy(pair, forge)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: replicas(pair) == 2, 60)
    bad = [(one.status, one.told) for one in made.outcomes if not one.good]
    print(
        f"F5: {failed} requests while it failed, {len(made.outcomes) - failed} until rolled back, bad: {bad}"
    )
    assert failed
    assert bad == []


def test_streams_end_before_their_replica_goes(pair: Server, forge: Forge) -> None:
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(ask(pair.url, tokens=150))) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    done = redeploy(pair, forge, "max_tokens=899", "min_replicas=1", "max_replicas=1")
    assert done.returncode == 0, done.stderr
    for thread in threads:
        thread.join()
    assert all(one.good for one in outcomes), [(o.status, o.told, o.ended - o.began) for o in outcomes]
    wait_for(lambda: replicas(pair) == 1, 120)
    print(f"F6: streams of {max(o.ended - o.began for o in outcomes):.0f} s ended, then one engine was left")


def test_an_overrun_engine_refuses_with_a_time_and_answers_the_others(pair: Server) -> None:
    """Ten times what its slots hold, at once; it runs one engine by now."""
    wait_for(lambda: replicas(pair) == 1, 120)
    ask(pair.url)
    with ThreadPoolExecutor(4) as pool:
        full = [one.ended - one.began for one in pool.map(lambda _: ask(pair.url), range(8))]
    memory = sum(p.memory_info().rss for p in processes(pair, "ray::ServeReplica"))
    with ThreadPoolExecutor(160) as pool:
        outcomes = list(pool.map(lambda _: ask(pair.url), range(160)))
    assert all(one.honest for one in outcomes), Counter(one.status for one in outcomes)
    accepted = [one.ended - one.began for one in outcomes if one.good]
    refused = [one.ended - one.began for one in outcomes if one.status in (429, 503)]
    assert accepted
    assert refused
    after = time.monotonic()
    wait_for(lambda: ask(pair.url).good, 10)
    grown = sum(p.memory_info().rss for p in processes(pair, "ray::ServeReplica")) - memory
    usual = f"with all slots busy {max(full):.1f} s"
    print(f"F7: {len(accepted)} answered, the slowest in {max(accepted):.1f} s, {usual}")
    print(f"F7: {len(refused)} refused within {max(refused):.2f} s, {grown / 2**20:+.0f} MiB")
    print(f"F7: well again after {time.monotonic() - after:.1f} s")
    assert grown < 100 * 2**20
    # A slot is waited for, and the refusals take their part of the cores.
    assert max(accepted) < 2 * max(full)


def test_a_client_that_leaves_frees_its_slot_within_a_second(pair: Server) -> None:
    wait_for(lambda: pair.experts()["base"]["running"] == 0, 30)
    child = subprocess.Popen(
        [sys.executable, "-c", f"from tests.local_ray._load import ask; ask('{pair.url}', tokens=800)"],
        cwd=ROOT,
        env=ENVIRONMENT,
    )
    wait_for(lambda: pair.experts()["base"]["running"] == 1, 30)
    time.sleep(1)
    os.kill(child.pid, signal.SIGKILL)
    # The router sees it at once; the engine's own count comes with its next report, a second later at most.
    print(f"F8: freed after {wait_for(lambda: pair.experts()['base']['running'] == 0, 2.2):.1f} s")

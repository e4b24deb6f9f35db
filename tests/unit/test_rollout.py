"""The way of an expert to live traffic, and the registry that keeps it, without Ray."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.errors import ConfigError
from largeforge_ray.promote.registry import DRAIN_S, SILENT_S, EventLog, Registry
from largeforge_ray.promote.rollout import Rules, Seen, next_move, summary
from largeforge_ray.promote.views import Entry, ReplicaReport, RouterReport, Trials
from largeforge_ray.routing.experts import EngineOptions, Expert
from largeforge_ray.store import open_store

MODEL, OTHER = "a" * 64, "d" * 64
ENGINE = EngineOptions(512, 8)
BASE = Expert("base", "live", MODEL, ENGINE)
NEW = Expert("orders", "loading", MODEL, ENGINE, adapter_key="b" * 64)
NEWER = replace(NEW, adapter_key="c" * 64)
RULES = Rules()


def entry(state: Any, since: float = 0.0) -> Entry:
    return Entry(replace(NEW, state=state), since=since)


def seen(**trials: Any) -> Seen:
    return Seen(replicas=1, serving=1, trials=Trials(**trials))


@pytest.mark.parametrize("state", ["proposed", "live", "draining", "failed"])
def test_who_is_not_on_trial_stays_what_it_is(state: str) -> None:
    assert next_move(entry(state), seen(asked=99, failed=99), 1e9, RULES) is None


def test_loading_is_over_when_every_engine_of_the_model_serves_it() -> None:
    assert next_move(entry("loading"), Seen(replicas=2, serving=1), 1.0, RULES) is None
    assert next_move(entry("loading"), Seen(replicas=0, serving=0), 1.0, RULES) is None
    move = next_move(entry("loading"), Seen(replicas=2, serving=2), 1.5, RULES)
    assert move is not None
    assert (move.to, move.reason) == ("shadow", "loaded and probed by 2 of 2 engines in 1.5 s")


def test_loading_that_does_not_end_fails_and_says_how_far_it_came() -> None:
    move = next_move(entry("loading"), Seen(replicas=2, serving=1), RULES.load_s, RULES)
    assert move is not None
    assert move.to == "failed"
    assert "1 of 2 engines" in move.reason


@pytest.mark.parametrize("state", ["loading", "shadow", "canary"])
def test_an_engine_that_refuses_it_ends_the_trial_at_any_time(state: str) -> None:
    refused = Seen(replicas=2, serving=1, refused={"r1": "it has rank 64"})
    move = next_move(entry(state), refused, 0.0, RULES)
    assert move is not None
    assert (move.to, move.reason) == ("failed", "engine r1 refuses it: it has rank 64")


@pytest.mark.parametrize(
    ("state", "after", "enough", "longest"),
    [
        ("shadow", "canary", RULES.shadow_requests, RULES.shadow_s),
        ("canary", "live", RULES.canary_requests, RULES.canary_s),
    ],
)
def test_a_trial_is_over_after_enough_requests_or_its_time(
    state: str, after: str, enough: int, longest: float
) -> None:
    assert next_move(entry(state), seen(asked=enough - 1), longest - 0.1, RULES) is None
    for move in (
        next_move(entry(state), seen(asked=enough), 0.1, RULES),
        next_move(entry(state), seen(), longest, RULES),
    ):
        assert move is not None
        assert move.to == after
    assert "no request fitted it" in move.reason


@pytest.mark.parametrize(
    ("trials", "why"),
    [
        ({"asked": 4, "failed": 2}, "2 of 4 requests failed"),
        ({"asked": 4, "seconds": (9.0,) * 4, "baseline_seconds": (1.0,) * 4}, "answers take 9.00 s"),
        (
            {"asked": 4, "finished": 0, "baseline_asked": 4, "baseline_finished": 4},
            "100% of its answers do not end before max_tokens, 0% of the others'",
        ),
    ],
)
@pytest.mark.parametrize("state", ["shadow", "canary"])
def test_a_breach_fails_it_with_its_numbers(state: str, trials: dict[str, Any], why: str) -> None:
    move = next_move(entry(state), seen(**trials), 0.1, RULES)
    assert move is not None
    assert move.to == "failed"
    assert why in move.reason


@pytest.mark.parametrize(
    "trials",
    [
        {"asked": 1, "failed": 1},
        {"asked": 3, "seconds": (9.0,) * 3, "baseline_seconds": (1.0,) * 9},
        {"asked": 4, "finished": 0, "baseline_asked": 4, "baseline_finished": 0},
    ],
    ids=["one failure", "too few times", "as unfinished as the others"],
)
def test_what_may_be_chance_is_no_breach(trials: dict[str, Any]) -> None:
    assert next_move(entry("canary"), seen(**trials), 0.1, RULES) is None


def test_a_trial_in_a_few_words() -> None:
    trials = Trials(3, 1, 2, (1.0, 2.0), 2, 2, (1.5,), (0.5, 1.0))
    assert summary(trials) == "3 requests, 1 failed, median 1.50 s to 1.50 s, agreement 0.75"


@given(st.lists(st.builds(Trials, asked=st.integers(0, 9), seconds=st.tuples(st.floats(0, 9))), max_size=4))
def test_trials_of_several_routers_add_up(trials: list[Trials]) -> None:
    total = sum(trials, Trials())
    assert total.asked == sum(one.asked for one in trials)
    assert sorted(total.seconds) == sorted(s for one in trials for s in one.seconds)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def registry(folder: Path, clock: Clock) -> Registry:
    return Registry(EventLog(open_store(folder), "registry/r"), [BASE], clock)


def test_an_expert_that_came_with_the_router_brings_its_gates_numbers(tmp_path: Path) -> None:
    log = EventLog(open_store(tmp_path), "registry/g")
    made = Registry(log, [BASE], time.time, gates={BASE.name: {"gain": 0.1, "low": 0.02}})
    assert made.events[0].evidence == {"gate": {"gain": 0.1, "low": 0.02}}
    assert Registry(log, [BASE], time.time).events == made.events


def report(sequence: int = 1, **more: Any) -> ReplicaReport:
    return ReplicaReport("r1", MODEL, "127.0.0.1:1", sequence, **more)


def states(one: Registry) -> dict[str, str]:
    return {e.expert.version: e.expert.state for e in one.entries}


def promote(one: Registry, clock: Clock, expert: Expert) -> None:
    one.propose(expert, "test")
    served = tuple(e.expert.version for e in one.entries)
    for _ in range(3):
        clock.now += RULES.canary_s
        one.hear(report(served=served))
        one.tick()


def test_an_expert_goes_from_loading_to_live_and_every_step_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.hear(report(served=(BASE.version,)))
    promote(one, clock, NEW)
    assert states(one) == {BASE.version: "live", NEW.version: "live"}
    assert [(e.before, e.to) for e in one.events if e.version == NEW.version] == [
        (None, "loading"),
        ("loading", "shadow"),
        ("shadow", "canary"),
        ("canary", "live"),
    ]


def test_a_new_version_takes_the_place_of_the_old_one_which_ends_and_goes(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    promote(one, clock, NEW)
    promote(one, clock, NEWER)
    assert states(one) == {BASE.version: "live", NEW.version: "draining", NEWER.version: "live"}
    clock.now += DRAIN_S + 0.1
    one.tick()
    assert states(one) == {BASE.version: "live", NEWER.version: "live"}


@pytest.mark.parametrize("steps", range(5))
def test_a_registry_that_was_killed_is_as_it_was(tmp_path: Path, steps: int) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.propose(NEW, "test")
    for _ in range(steps):
        clock.now += RULES.canary_s
        one.hear(report(served=(NEW.version,)))
        one.tick()
    again = registry(tmp_path, clock)
    assert again.entries == one.entries
    assert again.view().young


def test_an_engines_refusal_fails_the_expert_alone_and_is_remembered(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.propose(NEW, "test")
    one.hear(report(refused={NEW.version: "half of a file"}))
    one.tick()
    assert states(one) == {BASE.version: "live", NEW.version: "failed"}
    found = next(e for e in registry(tmp_path, clock).entries if e.expert == replace(NEW, state="failed"))
    assert "half of a file" in found.reason
    one.propose(NEW, "test")  # a failed one may try again
    assert states(one)[NEW.version] == "loading"


def test_what_routers_saw_decides(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.propose(NEW, "test")
    one.hear(report(served=(NEW.version,)))
    one.tick()
    for name in ("first", "second"):
        one.hear(RouterReport(name, {(NEW.version, "shadow"): Trials(asked=3, failed=1)}))
    one.tick()
    assert states(one)[NEW.version] == "failed"
    assert "2 of 6 requests failed" in one.entries[-1].reason


def test_a_replica_that_falls_silent_is_forgotten_and_others_are_told(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.hear(report())
    number = one.number
    one.hear(report(2, running=5))
    assert one.number == number  # load alone wakes nobody
    clock.now += SILENT_S + 0.1
    assert one.tick()
    assert one.view().replicas == ()
    assert one.view(one.number).entries is None


@pytest.mark.parametrize(
    ("twice", "why"),
    [
        (NEW, "is loading already"),
        (NEWER, "is still in loading"),
        (replace(NEW, name="base"), "'base' is a whole model, whose place no adapter takes"),
    ],
    ids=["same", "other weights", "a model"],
)
def test_a_name_has_one_trial_at_a_time(tmp_path: Path, twice: Expert, why: str) -> None:
    one = registry(tmp_path, Clock())
    one.propose(NEW, "test")
    with pytest.raises(ConfigError, match=why):
        one.propose(twice, "test")


def test_removing_drains_and_the_general_expert_stays(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    promote(one, clock, NEW)
    with pytest.raises(ConfigError, match="cannot be removed"):
        one.remove("base", "test", keep="base")
    with pytest.raises(ConfigError, match="there are: base, orders"):
        one.remove("none", "test", keep="base")
    assert one.remove("orders", "test", keep="base").expert.state == "draining"


def test_an_event_is_plain_json_with_the_evidence(tmp_path: Path) -> None:
    clock = Clock()
    one = registry(tmp_path, clock)
    one.propose(NEW, "alice")
    one.hear(report(served=(NEW.version,), evidence={NEW.version: {"error": 0.05}}))
    one.tick()
    files = sorted((tmp_path / "registry" / "r").iterdir())
    assert [file.name for file in files] == ["00000001.json", "00000002.json", "00000003.json"]
    last = json.loads(files[-1].read_text())
    assert (last["before"], last["to"]) == ("loading", "shadow")
    assert last["evidence"] == {"loading": {"r1": {"error": 0.05}}}
    assert json.loads(files[1].read_text())["actor"] == "alice"

"""The event log: on disk at once, whole lines only, one run per file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.errors import StoreError
from largeforge_ray.observe import EventLog, read_events
from largeforge_ray.observe.events import KINDS
from largeforge_ray.observe.metrics import METRICS, unit_of
from largeforge_ray.store import Store, open_store
from largeforge_ray.types import RunEvent

RUN = "run-1"
PATH = f"runs/{RUN}/events.jsonl"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


def test_an_event_is_on_disk_when_append_returns(store: Store, tmp_path: Path) -> None:
    log = EventLog(store, RUN, clock=lambda: 12.5)
    event = log.emit("rows", "progress", {"done": 3, "total": 9}, "go\non")
    assert event == RunEvent(12.5, RUN, "rows", "progress", {"done": 3, "total": 9}, "go\non")
    assert json.loads((tmp_path / PATH).read_text())["numbers"] == {"done": 3, "total": 9}
    assert read_events(store, RUN) == [event]
    log.close()
    log.close()


def test_a_run_without_events_has_none(store: Store) -> None:
    assert read_events(store, RUN) == []


@pytest.mark.parametrize("tail", [b'{"time": 1.0, "run": "run', b'{"time"', b"\xff", b"[]"])
def test_a_torn_last_line_is_left_out_and_removed_by_the_next_log(store: Store, tail: bytes) -> None:
    with EventLog(store, RUN) as log:
        first = log.emit("rows", "started")
    store.write_bytes(PATH, store.read_bytes(PATH) + tail)
    assert read_events(store, RUN) == [first]
    with EventLog(store, RUN) as log:
        second = log.emit("rows", "finished")
    assert read_events(store, RUN) == [first, second]


def test_a_whole_last_line_that_lacks_its_newline_is_kept(store: Store) -> None:
    with EventLog(store, RUN) as log:
        first = log.emit("rows", "started")
    store.write_bytes(PATH, store.read_bytes(PATH).rstrip())
    with EventLog(store, RUN) as log:
        second = log.emit("rows", "finished")
    assert read_events(store, RUN) == [first, second]


def test_damage_before_the_last_line_is_loud(store: Store) -> None:
    with EventLog(store, RUN) as log:
        log.emit("rows", "started")
    store.write_bytes(PATH, b"{broken\n" + store.read_bytes(PATH))
    with pytest.raises(StoreError, match=r"line 1 of runs/run-1/events.jsonl"):
        read_events(store, RUN)


def test_wrong_kinds_and_foreign_events_are_refused(store: Store) -> None:
    with EventLog(store, RUN) as log:
        with pytest.raises(ValueError, match="'done' is unknown; use one of planned"):
            log.emit("rows", "done")
        with pytest.raises(ValueError, match="run-2"):
            log.append(RunEvent(0.0, "run-2", "rows", "started"))


@pytest.mark.parametrize("run", ["", "../other", "a/b", ".hidden", "a b"])
def test_a_run_id_cannot_leave_the_runs_folder(store: Store, run: str) -> None:
    with pytest.raises(StoreError, match="not a plain name"):
        read_events(store, run)
    with pytest.raises(StoreError, match="not a plain name"):
        EventLog(store, run)


def test_threads_do_not_mix_their_lines(store: Store) -> None:
    with EventLog(store, RUN) as log:

        def work(name: str) -> None:
            for index in range(200):
                log.emit(name, "progress", {"done": index}, "x" * 300)

        threads = [threading.Thread(target=work, args=(f"stage-{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = read_events(store, RUN)
    assert len(events) == 800
    for i in range(4):
        own = [event.numbers["done"] for event in events if event.stage == f"stage-{i}"]
        assert own == list(range(200))


def test_an_object_store_is_written_at_each_end_of_a_stage_and_at_close() -> None:
    store = open_store("memory://events-test")
    log = EventLog(store, RUN)
    log.emit("rows", "started")
    assert not store.exists(PATH)
    log.emit("rows", "finished")
    assert len(read_events(store, RUN)) == 2
    log.emit("tuned", "started")
    assert len(read_events(store, RUN)) == 2
    log.close()
    assert len(read_events(store, RUN)) == 3
    with EventLog(store, RUN) as again:
        again.emit("tuned", "failed")
    assert [event.kind for event in read_events(store, RUN)] == ["started", "finished", "started", "failed"]


@settings(deadline=None)  # the first example opens files on a machine that may be busy
@given(
    st.lists(
        st.builds(
            RunEvent,
            time=st.floats(0, 2e9),
            run=st.just(RUN),
            stage=st.text(),
            kind=st.sampled_from(KINDS),
            numbers=st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()),
            message=st.text(),
        ),
        max_size=4,
    ),
    st.data(),
)
def test_events_survive_a_cut_anywhere_but_for_the_torn_one(
    tmp_path_factory: pytest.TempPathFactory, events: list[RunEvent], data: st.DataObject
) -> None:
    store = Store(tmp_path_factory.mktemp("log"))
    with EventLog(store, RUN) as log:
        for event in events:
            log.append(event)
    assert read_events(store, RUN) == events
    written = store.read_bytes(PATH)
    cut = data.draw(st.integers(0, len(written)))
    store.write_bytes(PATH, written[:cut])
    kept = read_events(store, RUN)
    assert kept == events[: len(kept)]
    assert len(kept) >= written[:cut].count(b"\n")


def test_units_come_from_the_list_or_from_the_ending() -> None:
    assert unit_of("loss") == "nats per token"
    assert unit_of("queue_s") == "s"
    assert unit_of("peak_bytes") == "bytes"
    assert unit_of("rank") == ""
    assert all(name == metric.name for name, metric in METRICS.items())

"""What a trial of a population remembers, and what its scheduler may make of its settings."""

from __future__ import annotations

from pathlib import Path

from largeforge_ray.config.sweeping import Range
from largeforge_ray.sweep.files import read_files, write_files
from largeforge_ray.sweep.lane_trial import history_from, short_name
from largeforge_ray.sweep.tuner import _within


def kept(trial: str, step: int, rate: float, history: list | None = None) -> dict:
    return {"trial": trial, "step": step, "point": {"learning_rate": rate}, "history": history or []}


def test_a_trial_that_is_restored_has_the_history_it_had() -> None:
    leg = {"step": 4, "point": {"learning_rate": 0.1}, "trial": "00001"}
    assert history_from(kept("00002", 8, 0.2), "00002") == []
    assert history_from(kept("00002", 8, 0.2, [leg]), "00002") == [leg]


def test_a_trial_that_takes_another_over_has_that_one_s_whole_way_behind_it() -> None:
    leg = {"step": 4, "point": {"learning_rate": 0.1}, "trial": "00001"}
    taken = history_from(kept("00002", 8, 0.2, [leg]), "00000")
    assert taken == [leg, {"step": 8, "point": {"learning_rate": 0.2}, "trial": "00002"}]


def test_trials_are_named_by_their_number_in_the_sweep() -> None:
    assert short_name("3f2a9_00004") == "00004"
    assert short_name("3f2a9c01") == "3f2a9c01"


def test_a_mutated_setting_stays_in_its_range() -> None:
    space = {"learning_rate": Range(low=0.01, high=0.1), "lora.dropout": [0.0, 0.1]}
    for mutated, held in ((0.12, 0.1), (0.008, 0.01), (0.05, 0.05)):
        config = {"point": {"learning_rate": mutated, "lora.dropout": 0.1}}
        assert _within(space, config) == {"point": {"learning_rate": held, "lora.dropout": 0.1}}


def test_a_checkpoint_travels_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "a" / "product").mkdir(parents=True)
    (tmp_path / "a" / "product" / "adapter.bin").write_bytes(b"1")
    (tmp_path / "a" / "lane.bin").write_bytes(b"2")
    write_files(tmp_path / "b", read_files(tmp_path / "a"))
    assert read_files(tmp_path / "b") == {"product/adapter.bin": b"1", "lane.bin": b"2"}

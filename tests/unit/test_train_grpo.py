"""Learning from one's own answers: the loss against plain formulas and TRL, and a model that learns."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from largeforge_ray.config.algorithms import Grpo
from largeforge_ray.errors import DataError
from largeforge_ray.train.batch import Encoded
from largeforge_ray.train.checkpoint import Progress
from largeforge_ray.train.rollout import Answer, LocalSampler, Prompt, sample
from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, text, tiny_model

REWARDS = st.lists(
    st.lists(st.floats(-100, 100), min_size=4, max_size=4),
    min_size=1,
    max_size=5,
)


LEARNING = {"learning_rate": 0.1, "schedule": "constant", "epochs": 25.0, "lora": {"alpha": 64}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def prompts(number: int) -> list[dict[str, Any]]:
    rng = random.Random(3)
    return [
        {
            "item_id": str(i),
            "messages": [{"role": "user", "content": text(rng, 2 + i % 5)}],
            "label": None,
            "check": "contains",
            "answer": "stool",
        }
        for i in range(number)
    ]


@given(REWARDS)
@settings(max_examples=100, deadline=None)
def test_better_answers_have_larger_advantages_and_a_group_has_none_left_over(
    rewards: list[list[float]],
) -> None:
    import torch

    from largeforge_ray.train.grpo import advantages

    made = advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
    for group, found in zip(rewards, made, strict=True):
        assert sum(found) == pytest.approx(0.0, abs=1e-6)
        if len(set(group)) == 1:
            assert found == [0.0] * len(group)
        for i, a in enumerate(group):
            for j, b in enumerate(group):
                assert a <= b or found[i] >= found[j]


def test_advantages_are_in_standard_deviations_of_the_group() -> None:
    import torch

    from largeforge_ray.train.grpo import advantages

    made = advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])).tolist()
    assert made[0] == pytest.approx([1.5, -0.5, -0.5, -0.5], rel=1e-3)
    assert made[1] == [0.0] * 4


def rolled_out(model: Path, batching: str = "packed", **options: Any) -> tuple[Any, Any]:
    """A bench, and a table of answers that an older model and an engine knew a little differently."""
    from largeforge_ray.train.rollout_course import RolloutTable

    stage = stage_of({"name": "grpo", "max_new_tokens": 32} | options, batching=batching, tokens_per_pass=100)
    bench = bench_of(model, stage)
    rng = random.Random(5)
    sequences, answers = [], []
    for i in range(6):
        prompt = [rng.randrange(4, 30) for _ in range(3 + i)]
        ids = [rng.randrange(4, 30) for _ in range(2 + 3 * i)]
        sequences.append(Encoded(prompt + ids, [False] * len(prompt) + [True] * len(ids)))
        answers.append(Answer(ids, "", True))
    table = RolloutTable(sequences, answers, [1.5, -0.5, -0.2, 0.9, -1.0, 0.3])
    now = bench.token_logps(bench.lane, table)
    table.old = {r: [p + rng.uniform(-0.5, 0.5) for p in known] for r, known in now.items()}
    table.sampler = [[p + rng.uniform(-1.0, 1.0) for p in table.old[r]] for r in range(6)]
    if stage.algorithm.beta:
        table.reference = bench.token_logps(bench.lane, table, adapter=False)
    return bench, table


def plain_loss(bench: Any, table: Any) -> float:
    """The papers' formula in Python floats: one sequence, one forward, no packing."""
    import torch

    o, losses = bench.stage.algorithm, []
    for r in range(len(table)):
        (sequence,) = table.row(r)
        ids, first = sequence.ids, sequence.learn.index(True)
        with torch.no_grad():
            logps = torch.log_softmax(bench.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
            with bench.model.disable_adapter():
                base = torch.log_softmax(bench.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        for t in range(first, len(ids)):
            p, q = float(logps[t - 1, ids[t]]), float(base[t - 1, ids[t]])
            ratio = math.exp(p - table.old[r][t - first])
            bounded = min(max(ratio, 1 - o.clip), 1 + o.clip_high)
            gain = min(ratio * table.advantage[r], bounded * table.advantage[r])
            weight = min(math.exp(table.old[r][t - first] - table.sampler[r][t - first]), o.max_correction)
            losses.append(-weight * gain + o.beta * (math.exp(q - p) - (q - p) - 1))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.3}, {"clip": 0.1, "clip_high": 0.1, "max_correction": 1.2}]
)
def test_the_loss_is_the_papers(model: Path, options: dict[str, Any]) -> None:
    bench, table = rolled_out(model, **options)
    found = bench.accumulate(bench.lane, table, range(len(table)), None)
    assert found["loss"] == pytest.approx(plain_loss(bench, table), rel=1e-4)
    assert 0.0 < found["clipped"] < 1.0
    assert (found["kl"] > 0.0) == bool(options.get("beta"))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_trl_computes_the_same_loss(model: Path, tmp_path: Path, beta: float) -> None:
    bench, table = rolled_out(model, "padded", beta=beta)
    found = bench.accumulate(bench.lane, table, range(len(table)), None, learn=False)["loss"]
    assert found == pytest.approx(trl_loss(bench, model, table, tmp_path), rel=1e-4)


def trl_loss(bench: Any, model: Path, table: Any, folder: Path) -> float:
    """What TRL's own trainer says of the same tokens, advantages and log-probabilities; it draws nothing."""
    import datasets
    import torch
    import transformers
    import trl
    from torch.nn.utils.rnn import pad_sequence

    transformers.logging.set_verbosity_error()
    o = bench.stage.algorithm
    trainer = trl.GRPOTrainer(
        model=bench.model,
        reward_funcs=lambda **_: [0.0],
        args=trl.GRPOConfig(
            output_dir=str(folder),
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            loss_type="dapo",
            use_bias_correction_kl=False,
            beta=o.beta,
            epsilon=o.clip,
            epsilon_high=o.clip_high,
            per_device_train_batch_size=2,
            num_generations=2,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"]}),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.use_vllm = True  # the correction is a factor it takes from its inputs
    sequences = [table.row(r)[0] for r in range(len(table))]
    firsts = [s.learn.index(True) for s in sequences]

    def rows(values: list[list[float]], **options: Any) -> Any:
        return pad_sequence([torch.tensor(v) for v in values], batch_first=True, **options)

    answers = [s.ids[f:] for s, f in zip(sequences, firsts, strict=True)]
    old, sampler = rows([table.old[r] for r in range(len(table))]), rows(table.sampler)
    asked = [s.ids[:f] for s, f in zip(sequences, firsts, strict=True)]
    inputs = {
        "prompt_ids": rows(asked, padding_side="left"),
        "prompt_mask": rows([[1] * len(a) for a in asked], padding_side="left"),
        "completion_ids": rows(answers),
        "completion_mask": rows([[1] * len(a) for a in answers]),
        "advantages": torch.tensor(table.advantage),
        "old_per_token_logps": old,
        "importance_sampling_ratio": (old - sampler).exp().clamp(max=o.max_correction),
        "num_items_in_batch": torch.tensor(float(sum(map(len, answers)))),
    }
    if o.beta:
        inputs["ref_per_token_logps"] = rows([table.reference[r] for r in range(len(table))])
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, inputs))


def test_an_answer_follows_from_its_own_seed_and_the_likeliest_from_none(model: Path) -> None:
    bench = bench_of(model, stage_of({"name": "grpo", "max_new_tokens": 12}))
    prompt, end = [5, 6, 7], 2
    together = sample(bench.model, Prompt(prompt, (1, 2, 3)), 12, end)
    assert sample(bench.model, Prompt(prompt, (3,)), 12, end) == together[2:]
    assert len({tuple(a) for a in together}) == 3
    greedy = sample(bench.model, Prompt(prompt), 12, end)
    assert greedy == sample(bench.model, Prompt(prompt), 12, end)
    assert len(greedy) == 1


def test_tokens_are_drawn_as_often_as_the_model_says(model: Path) -> None:
    import torch

    bench = bench_of(model, stage_of({"name": "grpo"}))
    bench.model.eval()
    drawn = [ids[0] for ids in sample(bench.model, Prompt([5, 6, 7], tuple(range(4000))), 1, 2)]
    with torch.no_grad():
        expected = bench.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    found = torch.bincount(torch.tensor(drawn), minlength=len(expected)) / len(drawn)
    assert float((found - expected).abs().max()) < 0.03


def course_of(model: Path, folder: Path, algorithm: dict[str, Any], judge: Any, **settings: Any) -> Any:
    from largeforge_ray.train.bench import Bench
    from largeforge_ray.train.rollout_course import RolloutCourse

    stage = stage_of(algorithm, batch_size=4, **settings)
    bench = Bench(stage, str(model))
    lane = bench.add_lane(stage)
    table_of(model, stage, prompts(8), folder / "train.arrow")
    table_of(model, stage, prompts(4), folder / "test.arrow")
    return RolloutCourse(bench, lane, folder, LocalSampler(bench, lane), judge)


@pytest.mark.parametrize("options", [{}, {"updates": 2, "beta": 0.01}])
def test_a_model_learns_to_say_what_is_rewarded(model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    def share(answers: Any) -> list[float]:
        return [sum(i % 2 for i in answer.ids) / len(answer.ids) for _, answer in answers]

    algorithm = {"name": "grpo", "group": 8, "max_new_tokens": 6} | options
    course, progress = course_of(model, tmp_path, algorithm, share, **LEARNING), Progress()
    course.measure(progress, "before")
    figures = [course.take_step(progress) for _ in range(course.order.steps)]
    course.measure(progress, "after")
    rewards = [f["reward"] for f in figures]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.25
    assert progress.held_out["after"]["reward"] > 0.8
    assert progress.losses[-1] == [course.order.steps, pytest.approx(-rewards[-1], abs=1e-5)]
    assert ("kl" in figures[0]) == ("beta" in options)
    assert "engine_gap" not in figures[0]


def test_a_step_draws_what_it_drew_before(model: Path, tmp_path: Path) -> None:
    """So a run that was killed goes on as it would have."""
    seen: list[list[str]] = []

    def note(answers: Any) -> list[float]:
        seen.append([answer.text for _, answer in answers])
        return [float(i % 2) for i in range(len(answers))]

    for _ in range(2):
        course = course_of(model, tmp_path, {"name": "grpo", "max_new_tokens": 6}, note)
        course.take_step(Progress())
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 4


def test_equal_rewards_change_nothing(model: Path, tmp_path: Path) -> None:
    algorithm = {"name": "grpo", "max_new_tokens": 6}
    course = course_of(model, tmp_path, algorithm, lambda answers: [1.0] * len(answers))
    before = course.lane.flat.detach().clone()
    figures = course.take_step(Progress())
    assert figures["no_signal"] == 1.0
    assert figures["grad_norm"] == 0.0
    assert bool((course.lane.flat == before).all())


def test_an_answer_counts_if_the_check_accepts_it_and_it_ends() -> None:
    from largeforge_ray.train.judge import by_check

    task = {"messages": [], "check": "contains", "answer": "yes"}
    answers = [Answer([1], "Yes.", True), Answer([1], "Yes.", False), Answer([1], "No.", True)]
    assert by_check([(task, a) for a in answers]) == [1.0, 0.0, 0.0]


def judge_of(bench: Any, folder: Path) -> Any:
    """The bench's reward model as a stage reads it."""
    from largeforge_ray.train.judge import RewardModel
    from largeforge_ray.train.lora import save_adapter

    save_adapter(bench.model, bench.lane.name, bench.lane.weights(), folder)
    return RewardModel(bench.model_dir, str(folder), "float32", bench.device)


def test_a_reward_model_scores_an_answer_as_it_did_in_training(model: Path, tmp_path: Path) -> None:
    bench = bench_of(model, stage_of("reward"))
    rows = make_rows("preference", 5)
    table = table_of(model, bench.stage, rows, tmp_path / "t.arrow")
    objective = bench.lane.objective
    expected = objective.forward(bench.model, bench.batch(table, range(5), (0,))).tolist()
    judge = judge_of(bench, tmp_path)
    answers = [(row, Answer([1], row["chosen"][0]["content"], True)) for row in rows]
    assert judge(answers) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1e-2


def test_an_answer_that_no_mask_could_be_placed_on_is_judged_too(model: Path, tmp_path: Path) -> None:
    """Of pairs such an answer is refused; what is drawn may be anything, and a step must not end by it."""
    import transformers

    from largeforge_ray.data import render_chat

    task, joined = prompts(1)[0], "\n\nstool"
    turns = [*task["messages"], {"role": "assistant", "content": joined}]
    with pytest.raises(DataError, match="renders earlier turns differently"):
        render_chat(transformers.AutoTokenizer.from_pretrained(model), turns, max_tokens=512)
    judge = judge_of(bench_of(model, stage_of("reward")), tmp_path)
    rewards = judge([(task, Answer([1], text, True)) for text in (joined, "stool", joined)])
    assert rewards[0] == pytest.approx(rewards[2], abs=1e-4)
    assert abs(rewards[0] - rewards[1]) > 1e-3


def test_a_prompt_keeps_what_its_answers_are_judged_by(model: Path, tmp_path: Path) -> None:
    rows = prompts(2)
    table = table_of(model, stage_of("grpo"), rows, tmp_path / "t.arrow")
    assert table.task(1) == {f: rows[1][f] for f in ("messages", "check", "answer")}
    (sequence,) = table.row(1)
    assert not any(sequence.learn)
    assert json.dumps(sequence.ids)


def test_a_prompt_that_nothing_judges_is_refused_unless_a_reward_model_does(
    model: Path, tmp_path: Path
) -> None:
    rows = [row | {"check": None, "answer": None} for row in prompts(1)]
    with pytest.raises(DataError, match=r"row 0 \(id 0\): no check"):
        table_of(model, stage_of("grpo"), rows, tmp_path / "t.arrow")
    judged = stage_of({"name": "grpo", "reward_model": "judge"})
    assert len(table_of(model, judged, rows, tmp_path / "t.arrow")) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lora": None}, "no whole model"),
        ({"lora": {"dora": True}}, "no DoRA"),
        ({"strategy": "fsdp2", "workers": 2}, "needs them whole"),
        ({"max_tokens": 100}, "leaves no room"),
    ],
)
def test_what_cannot_draw_answers_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        stage_of({"name": "grpo", "max_new_tokens": 128}, **given)


def test_a_reward_model_is_read_and_is_no_part_of_the_settings() -> None:
    judged = stage_of({"name": "grpo", "reward_model": "judge"})
    assert judged.references() == {"data": "rows", "algorithm.reward_model": "judge"}
    assert judged.settings() == stage_of(Grpo().model_dump()).settings()


def test_only_a_reward_model_judges_answers() -> None:
    from largeforge_ray.config import Manifest
    from largeforge_ray.config.manifest import ReferenceProblem, in_dependency_order

    rows = {"name": "rows", "kind": "dataset", "source": "rows.jsonl"}
    judge = {"name": "judge", "kind": "train", "data": "rows"}
    tuned = {"name": "tuned", "kind": "train", "data": "rows"}
    tuned |= {"algorithm": {"name": "grpo", "reward_model": "judge"}}

    def order(algorithm: str) -> list[str]:
        stages = [tuned, judge | {"algorithm": algorithm}, rows]
        made = Manifest.model_validate({"name": "m", "model": {"source": "x"}, "stages": stages})
        return [stage.name for stage in in_dependency_order(made.stages)]

    assert order("reward") == ["rows", "judge", "tuned"]
    with pytest.raises(ReferenceProblem, match="'judge' is no reward model"):
        order("sft")

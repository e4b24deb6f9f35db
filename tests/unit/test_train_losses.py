"""Every loss against independent computations: a plain loop over sequences, and TRL's own trainers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, tiny_model

ROWS = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def plain_logps(bench: Any, ids: list[int], learn: list[bool], *, adapter: bool = True) -> list[float]:
    """Log-probabilities of the learned tokens: one sequence, one forward, full softmax, no packing."""
    import torch

    with torch.no_grad():
        if adapter:
            logits = bench.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        else:
            with bench.model.disable_adapter():
                logits = bench.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    distribution = torch.log_softmax(logits.double(), -1)
    return [float(distribution[i - 1, ids[i]]) for i in range(1, len(ids)) if learn[i]]


def plain_distillation(bench: Any, table: Any, i: int) -> list[float]:
    """Each token's loss of a taught row from the whole distribution of the student, class by class."""
    import torch

    from largeforge_ray.train.distill import as_signals

    o, (s,) = bench.stage.algorithm, table.row(i)
    known = as_signals(table.signals([i], "cpu"))
    with torch.no_grad():
        logits = bench.model(input_ids=torch.tensor([s.ids]), use_cache=False).logits[0].double().tolist()
    losses = []
    for n, place in enumerate(p for p in range(1, len(s.ids)) if s.learn[p]):
        z, ids = logits[place - 1], known.ids_NK[n].tolist()
        others = len(z) - len(ids)
        student = [math.exp(x / o.temperature) for x in z]
        q = [student[j] / sum(student) for j in ids]
        q.append(1 - sum(q))
        p = [math.exp(x / o.temperature) for x in known.logps_NK[n].tolist()]
        p.append(others * (math.exp(float(known.tail_N[n])) / others) ** (1 / o.temperature))
        p = [x / sum(p) for x in p]
        m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
        kl = {"forward": [(p, q)], "reverse": [(q, p)], "jsd": [(p, m), (q, m)]}[o.divergence]
        soft = [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in kl]
        hard = math.log(sum(map(math.exp, z))) - z[s.ids[place]]
        losses.append(o.alpha * hard + (1 - o.alpha) * o.temperature**2 * sum(soft) / len(soft))
    return losses


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def plain_loss(bench: Any, table: Any) -> float:
    """The papers' formulas in Python floats."""
    o = bench.stage.algorithm
    rows = [table.row(i) for i in range(len(table))]
    policy = [[plain_logps(bench, s.ids, s.learn) for s in row] for row in rows]
    base = [[plain_logps(bench, s.ids, s.learn, adapter=False) for s in row] for row in rows]

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    def ratio(i: int, role: int, reduce: Callable[[list[float]], float] = sum) -> float:
        return reduce(policy[i][role]) - reduce(base[i][role])

    if o.name == "sft":
        tokens = [p for row in policy for p in row[0]]
        return -mean(tokens)
    if o.name == "distill":
        return mean([x for i in range(len(rows)) for x in plain_distillation(bench, table, i)])
    if o.name == "dpo":
        reduce = mean if o.loss == "ipo" else sum
        h = [ratio(i, 0, reduce) - ratio(i, 1, reduce) for i in range(len(rows))]
        if o.loss == "hinge":
            return mean([max(0.0, 1 - o.beta * x) for x in h])
        if o.loss == "ipo":
            return mean([(x - 1 / (2 * o.beta)) ** 2 for x in h])
        s = o.label_smoothing
        return mean([-(1 - s) * log_sigmoid(o.beta * x) - s * log_sigmoid(-o.beta * x) for x in h])
    if o.name == "orpo":
        pairs = [(mean(p[0]), mean(p[1])) for p in policy]
        odds = [math.log(math.exp(x) / (1 - math.exp(x))) for pair in pairs for x in pair]
        return mean(
            [-c - o.weight * log_sigmoid(odds[2 * i] - odds[2 * i + 1]) for i, (c, _) in enumerate(pairs)]
        )
    if o.name == "rationale":
        return mean([-mean(p[0]) - o.weight * mean(p[1]) for p in policy])
    if o.name == "simpo":
        return mean([-log_sigmoid(o.beta * (mean(p[0]) - mean(p[1])) - o.gamma) for p in policy])
    assert o.name == "kto"
    z0 = max(0.0, mean([ratio(i, 1) for i in range(len(rows))]))
    losses = []
    for i in range(len(rows)):
        if table.label(i):
            losses.append(o.desirable_weight * (1 - 1 / (1 + math.exp(-o.beta * (ratio(i, 0) - z0)))))
        else:
            losses.append(o.undesirable_weight * (1 - 1 / (1 + math.exp(-o.beta * (z0 - ratio(i, 0))))))
    return mean(losses)


CASES = {
    "sft": ("chat", {"name": "sft"}),
    "dpo": ("preference", {"name": "dpo", "beta": 0.3}),
    "dpo smoothed": ("preference", {"name": "dpo", "label_smoothing": 0.2}),
    "ipo": ("preference", {"name": "dpo", "loss": "ipo"}),
    "hinge": ("preference", {"name": "dpo", "loss": "hinge", "reference": "in_loop"}),
    "orpo": ("preference", {"name": "orpo", "weight": 0.5}),
    "simpo": ("preference", {"name": "simpo"}),
    "rationale": ("rationale", {"name": "rationale", "weight": 0.3}),
    "distill": ("taught", {"name": "distill"}),
    "distill reverse": (
        "taught",
        {"name": "distill", "divergence": "reverse", "temperature": 2, "alpha": 0.2},
    ),
    "distill jsd": ("taught", {"name": "distill", "divergence": "jsd", "temperature": 0.7}),
    "kto": ("unpaired", {"name": "kto", "beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
}


@pytest.mark.parametrize("batching", ["packed", "bucketed", "padded"])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_is_the_paper_s_however_the_rows_are_laid_out(
    model: Path, tmp_path: Path, case: str, batching: str
) -> None:
    form, algorithm = CASES[case]
    # Few tokens a pass, so that a step takes several passes.
    stage = stage_of(algorithm, batching=batching, tokens_per_pass=160)
    bench = bench_of(model, stage)
    table = table_of(model, stage, make_rows(form, ROWS), tmp_path / "t.arrow")
    reference = None
    if stage.algorithm.caches_reference:
        reference = bench.reference_logps(table, lambda n: None)
    found = bench.accumulate(bench.lane, table, range(ROWS), reference)["loss"]
    assert found == pytest.approx(plain_loss(bench, table), rel=2e-5)


@pytest.mark.parametrize("case", [*CASES, "reward"])
def test_packed_and_padded_rows_have_one_gradient(model: Path, tmp_path: Path, case: str) -> None:
    import torch

    form, algorithm = CASES.get(case, ("preference", {"name": "reward", "centering": 0.1}))
    gradients = []
    for batching, tokens in (("packed", 4096), ("packed", 100), ("padded", 4096), ("bucketed", 100)):
        stage = stage_of(algorithm, batching=batching, tokens_per_pass=tokens)
        bench = bench_of(model, stage)
        table = table_of(model, stage, make_rows(form, ROWS), tmp_path / "t.arrow")
        bench.accumulate(bench.lane, table, range(ROWS), None)
        gradients.append(bench.lane.gradient.clone())
    assert gradients[0].norm() > 0
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-4, atol=1e-6)


def split(sequence: Any) -> tuple[list[int], list[int]]:
    """Prompt and answer ids; what follows the last learned token is nobody's."""
    first = sequence.learn.index(True)
    last = len(sequence.learn) - sequence.learn[::-1].index(True)
    return sequence.ids[:first], sequence.ids[first:last]


def trl_loss(bench: Any, model: Path, table: Any, folder: Path) -> float:
    """What TRL's own trainer says of the same tokens and the same weights, in one batch."""
    import datasets
    import torch
    import transformers
    import trl

    transformers.logging.set_verbosity_error()
    o = bench.stage.algorithm
    rows = [table.row(i) for i in range(len(table))]
    shared: dict[str, Any] = {"output_dir": str(folder), "report_to": "none", "use_cpu": True, "bf16": False}
    shared |= {"gradient_checkpointing": False, "disable_tqdm": True, "max_length": None}
    some = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    if o.name == "sft":
        kind, config = trl.SFTTrainer, trl.SFTConfig(**shared)
        columns = {"prompt": [some[0]], "completion": [some[1]]}
        examples = [
            {
                "input_ids": r[0].ids,
                "labels": [i if x else -100 for i, x in zip(r[0].ids, r[0].learn, strict=True)],
            }
            for r in rows
        ]
    elif o.name == "kto":
        shares = {"desirable_weight": o.desirable_weight, "undesirable_weight": o.undesirable_weight}
        kind, config = (
            trl.KTOTrainer,
            trl.KTOConfig(beta=o.beta, per_device_train_batch_size=2, **shares, **shared),
        )
        columns = {"prompt": [some[0]] * 2, "completion": [some[1]] * 2, "label": [True, False]}
        examples = []
        for i, row in enumerate(rows):
            (prompt, answer), (_, other) = split(row[0]), split(row[1])
            ids = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other}
            examples.append(ids | {"label": table.label(i)})
    else:
        kind, config = trl.DPOTrainer, trl.DPOConfig(beta=o.beta, loss_type=[o.loss], **shared)
        columns = {"prompt": [some[0]], "chosen": [some[1]], "rejected": [some[1]]}
        examples = [
            {"prompt_ids": split(c)[0], "chosen_ids": split(c)[1], "rejected_ids": split(r)[1]}
            for c, r in rows
        ]
    # TRL keeps the adapter it is given as the reference, so it is given one that does nothing.
    weights = bench.lane.flat.data.clone()
    bench.lane.flat.data.zero_()
    bench.lane.publish()
    trainer = kind(
        model=bench.model,
        args=config,
        train_dataset=datasets.Dataset.from_dict(columns),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    bench.lane.flat.data.copy_(weights)
    bench.lane.publish()
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model, trainer.data_collator(examples)))


@pytest.mark.parametrize("case", ["sft", "dpo", "ipo", "hinge", "kto"])
def test_trl_computes_the_same_loss(model: Path, tmp_path: Path, case: str) -> None:
    form, algorithm = CASES[case]
    stage = stage_of(algorithm, batching="padded")
    bench = bench_of(model, stage)
    table = table_of(model, stage, make_rows(form, ROWS), tmp_path / "t.arrow")
    found = bench.accumulate(bench.lane, table, range(ROWS), None, learn=False)["loss"]
    assert found == pytest.approx(trl_loss(bench, model, table, tmp_path / "trl"), rel=1e-4)

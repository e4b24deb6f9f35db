"""Distillation: what K probabilities and a tail say of a whole distribution, and how they reach the loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.data import read_rows, write_rows
from largeforge_ray.data.rows import SIGNALS
from largeforge_ray.errors import DataError
from largeforge_ray.flow import make_plan
from largeforge_ray.models.tokenizer import tokenizer_hash
from largeforge_ray.store import open_store
from largeforge_ray.train.distill import as_signals
from largeforge_ray.train.words import check_taught, check_vocabulary
from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, taught, tiny_model
from tests.unit.test_chat_mask import CHATML, WITH_DEFAULT_SYSTEM, tokenizer_with
from tests.unit.test_plan import write_model, write_prompts

KINDS = ["forward", "reverse", "jsd"]
VOCABULARY = 49152


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def normalised(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float64."""
    above = logits - logits.max(1, keepdims=True)
    return above - np.log(np.exp(above).sum(1, keepdims=True))


def dense(p: np.ndarray, q: np.ndarray, kind: str) -> np.ndarray:
    """The divergence of whole distributions, given as log-probabilities."""

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sum(np.exp(a) * (a - b), 1)

    if kind == "jsd":
        middle = np.log((np.exp(p) + np.exp(q)) / 2)
        return (kl(p, middle) + kl(q, middle)) / 2
    return kl(p, q) if kind == "forward" else kl(q, p)


def language_like(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Teacher's and student's logits: frequencies after Zipf 1935, contexts of different certainty, a student
    near the teacher."""
    rng = np.random.default_rng(seed)
    certainty = rng.uniform(1, 2.5, (n, 1))
    teacher = (-np.log(np.arange(1, VOCABULARY + 1)) + rng.normal(0, 2.5, (n, VOCABULARY))) * certainty
    return teacher, teacher + rng.normal(0, 0.5, teacher.shape)


def kept(logps: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The K likeliest, their log-probabilities and the log of what the others sum to."""
    ids = np.argsort(-logps, 1)[:, :k]
    others = np.exp(logps)
    np.put_along_axis(others, ids, 0.0, 1)
    with np.errstate(divide="ignore"):
        return ids, np.take_along_axis(logps, ids, 1), np.log(others.sum(1))


def ours(logits: Any, signals: Any, temperature: float, kind: str) -> Any:
    import torch

    from largeforge_ray.train.distill import divergence

    known = [torch.from_numpy(np.ascontiguousarray(x)) for x in signals]
    return divergence(logits, *known, temperature=temperature, kind=kind)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_with_the_whole_vocabulary_kept_it_is_the_dense_divergence(kind: str, temperature: float) -> None:
    import torch

    rng = np.random.default_rng(0)
    teacher, student = rng.normal(0, 4, (2, 6, 50))
    found = ours(torch.from_numpy(student), kept(normalised(teacher), 50), temperature, kind)
    expected = dense(normalised(teacher / temperature), normalised(student / temperature), kind)
    assert found.numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_others_as_one_never_add_and_miss_no_more_than_is_promised(kind: str) -> None:
    import torch

    teacher, student = language_like(24, seed=1)
    p, q = normalised(teacher), normalised(student)
    ids, logps, tail = kept(p, 32)
    found = ours(torch.from_numpy(student), (ids, logps, tail), 1.0, kind).numpy()
    gap = dense(p, q, kind) - found
    assert (gap > 0).all()

    def among_others(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        masked = x.copy()
        np.put_along_axis(masked, ids, -np.inf, 1)
        mass = np.log(np.exp(masked).sum(1, keepdims=True))
        return np.exp(mass[:, 0]), np.where(np.isinf(masked), 0.0, masked - mass)

    def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sum(np.where(a < 0, np.exp(a) * (a - b), 0.0), 1)

    (p_others, p_), (q_others, q_) = among_others(p), among_others(q)
    assert 0.001 < p_others.min() < p_others.max() < 0.9
    if kind == "jsd":
        assert (gap <= math.log(2) * (p_others + q_others) / 2).all()
        return
    mass, missed, least = (p_others, kl(p_, q_), q_) if kind == "forward" else (q_others, kl(q_, p_), p_)
    assert gap == pytest.approx(mass * missed, rel=1e-9)
    assert (gap <= -mass * least.min(1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_at_a_temperature_it_is_the_divergence_from_a_teacher_whose_others_are_alike(kind: str) -> None:
    import torch

    rng = np.random.default_rng(2)
    teacher, student = rng.normal(0, 3, (2, 5, 40))
    ids = np.argsort(-teacher, 1)[:, :6]
    even = np.full_like(teacher, -4.0)
    np.put_along_axis(even, ids, np.take_along_axis(teacher, ids, 1), 1)
    signals = kept(normalised(even), 6)
    assert (np.sort(signals[0], 1) == np.sort(ids, 1)).all()

    def lumped(logps: np.ndarray) -> np.ndarray:
        _, inside, outside = kept(logps, 0)[0], np.take_along_axis(logps, signals[0], 1), np.exp(logps).copy()
        np.put_along_axis(outside, signals[0], 0.0, 1)
        return np.concatenate([inside, np.log(outside.sum(1, keepdims=True))], 1)

    found = ours(torch.from_numpy(student), signals, 2.5, kind).numpy()
    expected = dense(lumped(normalised(even / 2.5)), lumped(normalised(student / 2.5)), kind)
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_same_sums_written_down(kind: str, temperature: float) -> None:
    """Also where the student is sure, and what float32 takes for 1 leaves the others nothing."""
    import torch

    from largeforge_ray.train.distill import Signals, hard_and_soft

    rng = np.random.default_rng(3)
    student = rng.normal(0, 3, (4, 30))
    student[0, 5] = 60.0
    ids, logps, tail = kept(normalised(rng.normal(0, 3, (4, 30))), 3)
    ids[0, 0], tail[0] = 5, math.log(0.3)
    targets = torch.tensor([ids[0, 1], 7, ids[2, 0], 9])
    signals = Signals(*(torch.from_numpy(x) for x in (ids, logps, tail)))
    logits = torch.from_numpy(student).requires_grad_()
    hard, soft = hard_and_soft(logits, targets, signals, temperature=temperature, kind=kind)
    (found,) = torch.autograd.grad((0.3 * hard + 0.7 * soft).sum(), logits)

    written = torch.from_numpy(student).requires_grad_()
    scaled = written / temperature
    inside = scaled.gather(1, signals.ids_NK)
    outside = scaled.scatter(1, signals.ids_NK, -math.inf).logsumexp(1, keepdim=True)
    q = torch.cat([inside, outside], 1) - scaled.logsumexp(1, keepdim=True)
    even = (signals.tail_N.exp() / 27) ** (1 / temperature) * 27
    p = torch.cat([signals.logps_NK / temperature, even.log()[:, None]], 1).log_softmax(1)
    m = ((p.exp() + q.exp()) / 2).log()
    kl = torch.nn.functional.kl_div
    pairs = {"forward": [(q, p)], "reverse": [(p, q)], "jsd": [(m, p), (m, q)]}[kind]
    soft = sum(kl(b, a, reduction="sum", log_target=True) for b, a in pairs) / len(pairs)
    hard = torch.nn.functional.cross_entropy(written, targets, reduction="sum")
    (expected,) = torch.autograd.grad(0.3 * hard + 0.7 * soft, written)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("sure_of", ["one kept", "one of the others"])
@pytest.mark.parametrize("tail", [-math.inf, -0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tail_of_nothing_or_everything_is_a_number_with_a_gradient(
    kind: str, tail: float, sure_of: str
) -> None:
    import torch

    from largeforge_ray.train.distill import divergence

    top = [[-0.1, -2.4, -6.0]] if tail else [[-20.0, -21.0, -22.0]]
    logits = torch.zeros(1, 40, dtype=torch.bfloat16)
    logits[0, 3 if sure_of == "one kept" else 30] = 300.0
    logits.requires_grad_()
    ids = torch.tensor([[3, 4, 5]])
    made = divergence(logits, ids, torch.tensor(top), torch.tensor([tail]), temperature=1.0, kind=kind)
    assert made.isfinite().all()
    assert made > -1e-6
    (gradient,) = torch.autograd.grad(made.sum(), logits)
    assert gradient.isfinite().all()


def test_the_answer_is_the_teacher_s_tokens_and_not_its_text_tokenised_again(
    model: Path, tmp_path: Path
) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    text = "ship the lantern"
    letters = [tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in text]
    answer = [*letters, tokenizer.eos_token_id]
    assert letters != tokenizer(text, add_special_tokens=False)["input_ids"]
    (row,) = make_rows("taught", 1)
    row |= taught(0, len(answer)) | {"token_ids": answer}
    row["messages"][-1]["content"] = text
    table = table_of(model, stage_of("distill"), [row], tmp_path / "t.arrow")
    (sequence,) = table.row(0)
    prompt = tokenizer.apply_chat_template(
        row["messages"][:-1], add_generation_prompt=True, return_dict=False
    )
    assert sequence.ids == [*prompt, *answer]
    assert sequence.learn == [False] * len(prompt) + [True] * len(answer)
    signals = as_signals(table.signals([0], "cpu"))
    assert signals.ids_NK.flatten().tolist() == row["topk_ids"]
    assert signals.tail_N.tolist() == row["tail_logprob"].tolist()


def test_with_alpha_1_it_is_fine_tuning_on_the_teacher_s_tokens(model: Path, tmp_path: Path) -> None:
    rows = make_rows("taught", 5)
    found = {}
    for alpha in (0.0, 0.25, 1.0):
        stage = stage_of({"name": "distill", "alpha": alpha, "temperature": 2.0})
        bench = bench_of(model, stage)
        table = table_of(model, stage, rows, tmp_path / f"{alpha}.arrow")
        found[alpha] = bench.accumulate(bench.lane, table, range(5), None, learn=False)
    tuned = bench_of(model, stage_of("sft"))
    assert tuned.accumulate(tuned.lane, table, range(5), None)["loss"] == pytest.approx(found[1.0]["loss"])
    assert found[0.25]["loss"] == pytest.approx(0.25 * found[1.0]["loss"] + 0.75 * found[0.0]["loss"])
    assert [found[a]["hard"] for a in found] == pytest.approx([found[1.0]["hard"]] * 3)
    assert found[0.0]["soft"] > 0


def test_rows_too_long_are_left_out_and_rows_without_signals_named(model: Path) -> None:
    from largeforge_ray.train.tokens import TokenSpec, encode_rows

    rows = make_rows("taught", 4)
    rows[1] |= taught(1, 90)
    spec = TokenSpec(str(model), stage_of("distill").algorithm, 100)
    batch, left_out = encode_rows(rows, 10, spec)
    assert (left_out, batch.column("row").to_pylist()) == ([11], [10, 12, 13])
    cut = [*rows[:3], rows[3] | {"tail_logprob": rows[3]["tail_logprob"][1:]}]
    with pytest.raises(DataError, match=r"row 13 \(id 3\): .* tail_logprob, and k, k and 1 belong to each"):
        encode_rows(cut, 10, spec)
    with pytest.raises(DataError, match=r"row 12 \(id 2\): no probabilities of a teacher; set topk"):
        encode_rows([*rows[:2], rows[2] | dict.fromkeys(SIGNALS), rows[3]], 10, spec)


def test_32_probabilities_cost_at_most_120_bytes_a_token_on_disk_and_come_back_as_they_were(
    tmp_path: Path,
) -> None:
    rows, tokens = [], 0
    for seed, n in enumerate([12, 30, 7, 51, 20]):
        ids, logps, tail = kept(normalised(language_like(n, seed)[0]), 32)
        signals = (ids[:, 0], ids.flatten(), logps.flatten().astype(np.float16), tail.astype(np.float16))
        (row,) = make_rows("chat", 1, seed)
        rows.append(row | {"answer": None} | dict(zip(SIGNALS, signals, strict=True)))
        tokens += n
    write_rows(tmp_path, "test", [row | dict.fromkeys(SIGNALS) for row in rows])
    write_rows(tmp_path, "train", rows)
    plain, whole = ((tmp_path / f"{part}.parquet").stat().st_size for part in ("test", "train"))
    assert 60 * tokens < whole - plain <= 120 * tokens
    for row, found in zip(rows, read_rows(tmp_path, "train", numbers=SIGNALS), strict=True):
        assert all((found[name] == row[name]).all() for name in SIGNALS)
    assert next(read_rows(tmp_path, "test", numbers=SIGNALS))["topk_ids"] is None
    assert not set(SIGNALS) & set(next(read_rows(tmp_path, "train"))), "who does not ask pays nothing"


def test_tokenizers_are_told_apart_by_what_an_id_means(tmp_path: Path) -> None:
    def hashed(name: str, tokenizer: Any) -> str:
        tokenizer.save_pretrained(tmp_path / name)
        return tokenizer_hash(tmp_path / name)

    first = hashed("first", tokenizer_with(CHATML))
    padded = tokenizer_with(WITH_DEFAULT_SYSTEM)
    padded.pad_token = padded.eos_token
    assert hashed("other template and padding", padded) == first
    ending = tokenizer_with(CHATML)
    ending.eos_token = "<|endoftext|>"
    assert hashed("other end", ending) != first
    larger = tokenizer_with(CHATML)
    larger.add_tokens(["lantern"])
    assert hashed("larger", larger) != first
    check_vocabulary(first, first, "rows")
    for teacher in ("0" * 64, None):
        with pytest.raises(
            DataError, match=f"'rows' was taught with tokenizer .* has {first[:12]}: a token id"
        ):
            check_vocabulary(teacher, first, "rows")


@pytest.mark.parametrize(
    ("data", "topk", "refused"), [("rows", 32, False), ("rows", None, True), ("chats", None, True)]
)
def test_a_plan_without_a_teacher_s_probabilities_is_refused(
    tmp_path: Path, data: str, topk: int | None, refused: bool
) -> None:
    write_model(tmp_path / "model")
    write_prompts(tmp_path / "prompts.jsonl")
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    manifest = parse_manifest(
        f"""\
name: demo
model: {{source: model, max_model_len: 512}}
stages:
  - {{name: prompts, kind: dataset, source: prompts.jsonl}}
  - {{name: chats, kind: dataset, source: chats.jsonl}}
  - {{name: rows, kind: teach, prompts: prompts, topk: {topk or "null"}}}
  - {{name: tuned, kind: train, data: {data}, algorithm: distill}}
"""
    )
    if refused:
        with pytest.raises(
            DataError, match=f"'distill' learns from a teacher's .* dataset '{data}' holds none"
        ):
            make_plan(manifest, open_store(tmp_path / "forge"), tmp_path)
    else:
        assert make_plan(manifest, open_store(tmp_path / "forge"), tmp_path)["tuned"].kind == "train"


def test_only_what_reads_probabilities_asks_for_them() -> None:
    check_taught(stage_of("sft").algorithm, None, "rows")

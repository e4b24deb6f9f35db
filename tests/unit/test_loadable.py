"""Which engine knows a model is said before anything is loaded, with the reason and the fix."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import transformers

from largeforge_ray.models.loadable import why_not_loadable


def config_of(architecture: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type}


LLAMA = config_of("LlamaForCausalLM", "llama")
HELIUM = config_of("HeliumForCausalLM", "helium")  # not vLLM's own, but its attention can be replaced
NEO = config_of("GPTNeoForCausalLM", "gpt_neo")
VISION = config_of("ViTForImageClassification", "vit")
MADE_UP = config_of("NopeForCausalLM", "nope")


def test_vllm_loads_its_own_models_and_those_of_transformers_that_let_it() -> None:
    assert why_not_loadable(LLAMA) is None
    assert why_not_loadable(HELIUM) is None


def test_a_model_that_vllm_does_not_know_is_sent_to_transformers() -> None:
    reason = why_not_loadable(NEO)
    assert reason is not None
    assert "does not know the architecture GPTNeoForCausalLM" in reason
    assert "set backend: transformers" in reason
    assert why_not_loadable(NEO, "transformers") is None


@pytest.mark.parametrize("config", [VISION, MADE_UP])
def test_a_model_that_neither_knows_is_not_sent_anywhere(config: dict[str, Any]) -> None:
    reason = why_not_loadable(config)
    assert reason is not None
    assert "nor does transformers" in reason
    own = why_not_loadable(config, "transformers")
    assert own is not None
    assert f"transformers {transformers.__version__} does not know" in own


def test_an_engine_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert why_not_loadable(LLAMA) == "the engine vllm is not installed; install it"


def test_a_config_without_an_architecture_is_refused() -> None:
    assert why_not_loadable({"model_type": "llama"}, "transformers") is not None

"""An expert's speculation as arguments of vLLM 0.29.0, and what is known to fail before an engine starts.

    folder = ...  # of the model that ``draft_source(speculation)`` names, None if it names none
    check_speculation(speculation, model_dir, folder)
    engine_args(model_dir, max_model_len=1024, speculation=speculation, draft_dir=folder)

The rules are those of ``vllm/config/speculative.py``, read from the models' files alone: planning imports no
engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from largeforge_ray.config.speculation import Draft, Eagle, Mtp, Speculation, Suffix
from largeforge_ray.errors import ConfigError

SCHEDULER = "largeforge_ray.models.vllm_scheduler.scheduler"
METHODS = {"ngram": "ngram", "suffix": "suffix", "draft": "draft_model"}
"""vLLM's word for a kind, where it is another."""

MTP_TYPES = frozenset(
    {
        *("bailing_hybrid", "deepseek_v3", "deepseek_v32", "deepseek_v4", "ernie4_5_moe", "exaone_moe"),
        *("glm_moe_dsa", "hy_v3", "hy_v4", "kimi_k3", "longcat_flash", "longcat_flash_ngram", "nemotron_h"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_next", "step3p5"),
    }
)
"""``model_type`` of models whose layers for multi-token prediction vLLM runs."""
MTP_LAYERS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
"""Where such a model says how many it has."""


def draft_source(speculation: Speculation) -> str | None:
    """The model that drafts, as the config names it; None where no second one is loaded."""
    return speculation.model if isinstance(speculation, Draft | Eagle) else None


def speculation_args(speculation: Speculation, draft_dir: Path | None, max_num_seqs: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs``. ``draft_dir`` holds the model ``draft_source`` names.

    Speculation is switched off while it does not pay. A request's output says what was drafted for it and
    accepted (``SpeculationNumbers``).
    """
    config = speculation.model_dump(exclude={"kind", "model"})
    config["method"] = METHODS.get(speculation.kind, speculation.kind)
    if draft_source(speculation) is not None:
        config["model"] = str(draft_dir)
    # Without a table of its own vLLM pads every batch with drafts and cannot be told to make none.
    config["num_speculative_tokens_per_batch_size"] = [[1, max_num_seqs, speculation.num_speculative_tokens]]
    return {
        "speculative_config": config,
        "scheduler_cls": SCHEDULER,
        "per_request_spec_decode_metrics": "summary",
    }


def check_speculation(speculation: Speculation, model_dir: Path, draft_dir: Path | None = None) -> None:
    """Raises ``ConfigError`` for what the installed engine would refuse after its start, or do badly.

    It does not read weights: a head that was trained for another model with the same sizes passes.
    """
    if isinstance(speculation, Suffix) and find_spec("arctic_inference") is None:
        raise ConfigError(
            "speculation 'suffix' needs the package arctic-inference, which is not installed; "
            "run: pip install arctic-inference==0.1.1, or use kind: ngram"
        )
    if isinstance(speculation, Mtp):
        _check_mtp(_settings(model_dir))
    elif isinstance(speculation, Draft | Eagle):
        assert draft_dir is not None, "whoever checks has fetched what draft_source names"
        _check_draft(speculation, model_dir, draft_dir)


def _check_mtp(settings: dict[str, Any]) -> None:
    kind = settings.get("model_type")
    text = settings.get("text_config") or settings
    layers = max(int(text.get(name) or 0) for name in MTP_LAYERS)
    if kind not in MTP_TYPES or layers == 0:
        raise ConfigError(
            f"speculation 'mtp' needs a model with layers for multi-token prediction, and this one "
            f"(model_type {kind}, {layers} such layers) has none that vLLM runs; use kind: ngram or draft"
        )


def _check_draft(speculation: Draft | Eagle, model_dir: Path, draft_dir: Path) -> None:
    target, drafting = _settings(model_dir), _settings(draft_dir)
    named = f"'{speculation.model}' of speculation '{speculation.kind}'"
    ours, theirs = target.get("vocab_size"), drafting.get("vocab_size")
    if ours != theirs:
        raise ConfigError(
            f"{named} has a vocabulary of {theirs} tokens and the model one of {ours}; "
            "draft with a model that shares the tokenizer, such as a student of the same base"
        )
    if isinstance(speculation, Eagle):
        ours, theirs = target.get("hidden_size"), _reads(drafting)
        if ours != theirs:
            raise ConfigError(
                f"{named} reads hidden states of {theirs} numbers and the model has {ours}; "
                "use a head that was trained on this model"
            )
    elif _words(model_dir) != _words(draft_dir):
        raise ConfigError(
            f"{named} has other words for its {theirs} tokens than the model, so its drafts would mean "
            "something else; draft with a model that shares the tokenizer"
        )


def _reads(head: dict[str, Any]) -> Any:
    return head.get("target_hidden_size") or head.get("hidden_size")


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


def _words(folder: Path) -> Any:
    """A fast tokenizer's vocabulary."""
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


@dataclass(frozen=True, slots=True)
class SpeculationNumbers:
    """What was drafted for requests that ended. ``on`` if any was verified for the last of them.

    ``steps`` verified a draft, ``drafted`` and ``accepted`` are tokens, and ``switches`` counts how often
    ``on`` changed. A request for which nothing was found to draft looks as if speculation were off.
    """

    requests: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    on: bool = False
    switches: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        return self.accepted / self.drafted if self.drafted else None

    @property
    def accepted_length(self) -> float | None:
        """Mean tokens of a step that verified a draft, the model's own among them."""
        return 1 + self.accepted / self.steps if self.steps else None

    def after(self, metrics: Any) -> SpeculationNumbers:
        """One more request: ``metrics`` is a finished vLLM ``CompletionOutput``'s ``spec_decode_metrics``."""
        on = metrics.num_draft_tokens > 0
        return replace(
            self,
            requests=self.requests + 1,
            steps=self.steps + sum(metrics.histogram),
            drafted=self.drafted + metrics.num_draft_tokens,
            accepted=self.accepted + sum(length * times for length, times in enumerate(metrics.histogram)),
            on=on,
            switches=self.switches + (self.requests > 0 and on != self.on),
        )

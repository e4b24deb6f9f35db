"""The probe of an adapter: the run's engine beside what the trainer computed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import Training
from largeforge_ray.errors import GateError
from largeforge_ray.flow.context import RunContext
from largeforge_ray.promote import judge_logits, why_not_servable
from largeforge_ray.train.probe import PROBE_FILE
from largeforge_ray.types import ScoreRequest


def is_probed(declared: Training) -> bool:
    """Whether the stage wants a probe and makes an adapter that the engine can load."""
    return declared.probe and why_not_servable(declared) is None


def probe_adapter(context: RunContext, name: str, folder: Path) -> dict[str, Any]:
    """Compare the adapter in ``folder`` in the engine with PEFT; ``name`` is the stage that says so.

    Returns sequences, tokens, and by token effect, error and noise. Raises ``GateError`` if the engine
    cannot load the adapter or computes something else with it.
    """
    try:
        reference = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GateError(
            f"adapter {folder.name} has no {PROBE_FILE} to compare the engine with; train it again"
        ) from None
    import ray

    # The engine gives a token, too.
    reference = beginnings(reference, context.manifest.model.max_model_len - 1)
    ids = reference["ids"]
    engine = context.engine()
    with context.phase("probe"):
        base = _logps(engine, ids, None)
        files = {
            p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors")
        }
        adapted = _logps(engine, ids, ray.get(engine.put_adapter.remote(files)))
    result = judge_logits(reference, base, adapted)
    context.emit(
        name,
        "progress",
        {},
        f"probe: vLLM matches PEFT within {result.error:.3f} a token, the adapter moves {result.effect:.2f}",
    )
    return asdict(result)


def beginnings(reference: dict[str, list[list[Any]]], tokens: int) -> dict[str, list[list[Any]]]:
    """A reference of sequences no longer than ``tokens``: what follows changes nothing before it."""
    room = {"ids": tokens, "adapted": tokens - 1, "base": tokens - 1}
    return {name: [one[: room[name]] for one in sequences] for name, sequences in reference.items()}


def _logps(engine: Any, ids: list[list[int]], adapter: str | None) -> list[tuple[float, ...]]:
    import ray

    requests = [ScoreRequest(f"probe-{i}", tuple(one), adapter) for i, one in enumerate(ids)]
    scores = ray.get(engine.score.remote(requests))
    for score in scores:
        if score.error:
            raise GateError(f"the engine cannot score a probe sequence: {score.error}")
    return [score.logprobs for score in scores]

"""What a checkpoint holds: the adapter as PEFT reads it, the lane, and how far the run was."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largeforge_ray.train.bench import Bench
from largeforge_ray.train.lane import Lane
from largeforge_ray.train.lora import save_adapter


@dataclass(slots=True)
class Progress:
    """Where a run is. ``losses`` are ``[step, loss]``; ``held_out`` the figures ``before`` and ``after``."""

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    reference: Any = None


def save_checkpoint(folder: Path, bench: Bench, lane: Lane, progress: Progress) -> None:
    """Write everything into ``folder``."""
    from safetensors.torch import save_file

    save_adapter(bench.model, lane.name, lane.views(), folder)
    save_file(lane.state(), folder / "lane.safetensors")
    if progress.reference is not None:
        save_reference(progress.reference, folder)
    facts = {"step": progress.step, "losses": progress.losses, "held_out": progress.held_out}
    (folder / "progress.json").write_text(json.dumps(facts), encoding="utf-8")


def load_checkpoint(folder: Path, lane: Lane) -> Progress:
    """Put the lane where the checkpoint was."""
    from safetensors.torch import load_file

    lane.load(load_file(folder / "lane.safetensors"))
    facts = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    return Progress(**facts, reference=load_reference(folder))


def save_reference(logps: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"logps": logps.contiguous()}, folder / "reference.safetensors")


def load_reference(folder: Path | None) -> Any:
    """Reference log-probabilities ``(rows, sequences)``, None if the folder has none."""
    from safetensors.torch import load_file

    path = folder / "reference.safetensors" if folder else None
    return load_file(path)["logps"] if path and path.exists() else None

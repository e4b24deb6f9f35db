"""What a checkpoint holds: the product of the training, the lane, and how far the run was.

The product is a PEFT adapter, or of a whole model its folder as transformers reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from largeforge_ray.train.bench import Bench
from largeforge_ray.train.lane import state_name
from largeforge_ray.train.lora import save_adapter
from largeforge_ray.train.probe import PROBE_FILE
from largeforge_ray.train.whole import save_model

PRODUCT = "product"
"""The folder of a checkpoint that holds what the training is for."""
HELD_REFERENCE = "held-reference.safetensors"


@dataclass(slots=True)
class Progress:
    """Where a run is. ``losses`` are ``[step, loss]``; ``held_out`` the figures ``before`` and ``after``;
    ``curve`` are ``[step, held-out loss]`` where it was measured on the way.

    ``reference`` are log-probabilities of the rows, ``held_reference`` of the held-out ones, each
    ``(rows, sequences)``; ``probe`` what the adapter does, for the engine to be compared with.
    """

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)
    reference: Any = None
    held_reference: Any = None
    probe: Any = None

    def facts(self) -> dict[str, Any]:
        return {"step": self.step, "losses": self.losses, "held_out": self.held_out, "curve": self.curve}


def save_checkpoint(folder: Path, bench: Bench, lane: Any, progress: Progress) -> None:
    """Write everything into ``folder``. Every worker has to call it; the first one writes."""
    from safetensors.torch import save_file

    state = {n: w.detach().cpu().clone() for n, w in lane.state().items()}
    if bench.rank:
        return
    product = folder / PRODUCT
    product.mkdir(parents=True)
    # What the objective trains beside the model stays behind.
    inside = {n for n, _ in bench.model.named_parameters()} & lane.parameters.keys()
    weights = {n: state[state_name("weights", n, lane.name)] for n in lane.parameters if n in inside}
    if lane.stage.lora is None:
        save_model(bench, weights, product)
    else:
        save_adapter(bench.model, lane.name, weights, product)
    if progress.probe is not None:
        (product / PROBE_FILE).write_text(json.dumps(progress.probe), encoding="utf-8")
    save_file(state, folder / "lane.safetensors")
    if progress.reference is not None:
        save_reference(progress.reference, folder)
    if progress.held_reference is not None:
        save_file({"logps": progress.held_reference.contiguous()}, folder / HELD_REFERENCE)
    (folder / "progress.json").write_text(json.dumps(progress.facts()), encoding="utf-8")


def load_checkpoint(folder: Path, lane: Any) -> Progress:
    """Put the lane where the checkpoint was."""
    from safetensors.torch import load_file

    lane.load(load_file(folder / "lane.safetensors"))
    facts = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    held = load_file(folder / HELD_REFERENCE)["logps"] if (folder / HELD_REFERENCE).exists() else None
    return Progress(**facts, reference=load_reference(folder), held_reference=held)


def save_reference(logps: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"logps": logps.contiguous()}, folder / "reference.safetensors")


def load_reference(folder: Path | None) -> Any:
    """Reference log-probabilities ``(rows, sequences)``, None if the folder has none."""
    from safetensors.torch import load_file

    path = folder / "reference.safetensors" if folder else None
    return load_file(path)["logps"] if path and path.exists() else None

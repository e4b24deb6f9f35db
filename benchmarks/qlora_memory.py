"""What holding the frozen base in four bits saves: QLoRA, Dettmers et al. 2023 (arXiv:2305.14314).

python -m benchmarks.qlora_memory --store ./forge            # after a run: the store holds the model

Measured on the packaged model, one process each in turn: bytes of the weights (storages, because mapped
files hide in resident memory), how far resident memory peaks above them in a training step, and the
loss. A fifth of this small model is its embedding, which stays in bfloat16, and that bounds what it can show.

Computed from published shapes: what one GPU must hold of Llama 2 7B and 70B. NF4 with double
quantisation is 4 bits a weight, 8 bits a block of 64 for its scale, and 32 bits a 256 of those scales
(section 3): 4 + 8/64 + 32/(64 * 256) = 4.127 bits, 0.516 bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._pairs import refuse_busy, write_down

COMMAND = "python -m benchmarks.qlora_memory"
WAYS: dict[str, dict[str, Any]] = {"bf16": {}, "nf4": {"quantize": "nf4"}}
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
ADAPTER_BYTES = 2 + 2 + 4 + 4 + 8
"""A trained weight and its gradient in bfloat16, both again in float32, and AdamW's two moments."""
PASS_TOKENS = 2048
LAYER_BYTES = 34
"""Activations a token and hidden unit that a layer keeps for the backward pass, without an attention matrix:
of a GPT's layer in Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), near enough for a Llama's."""
LOGIT_BYTES = 2 + 4 + 4
"""A token and word of the vocabulary: logits, in float32 for the loss, and their gradient."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama; ``kv`` is the width of keys and values."""

    name: str
    hidden: int
    layers: int
    inner: int
    kv: int
    rank: int
    targets: tuple[str, ...]
    recompute: bool
    gpu_gib: int
    vocabulary: int = 32_000

    @property
    def linear(self) -> dict[str, list[tuple[int, int]]]:
        """Inputs and outputs of a layer's matrices, by group of targets."""
        h, i, kv = self.hidden, self.inner, self.kv
        return {"attention": [(h, h), (h, kv), (h, kv), (h, h)], "mlp": [(h, i), (h, i), (i, h)]}

    def gib(self, weight_bytes: float) -> dict[str, float]:
        """What a GPU holds, when a weight of a layer takes ``weight_bytes``."""
        matrices = [m for group in self.linear.values() for m in group]
        trained = [m for target in self.targets for m in self.linear[target]]
        adapter = self.layers * self.rank * sum(a + b for a, b in trained)
        token = LAYER_BYTES * self.hidden
        # Computed again, a layer keeps its input alone, and one layer at a time all of the rest.
        kept = self.layers * 2 * self.hidden + token if self.recompute else self.layers * token
        parts = {
            "layers": weight_bytes * self.layers * sum(a * b for a, b in matrices),
            "embedding and head, bf16": 2.0 * 2 * self.vocabulary * self.hidden,
            "adapter, gradients, moments": float(ADAPTER_BYTES * adapter),
            "activations": float(PASS_TOKENS * (kept + LOGIT_BYTES * self.vocabulary)),
        }
        return {name: part / 1024**3 for name, part in parts.items()}


# Rank and targets as the presets 7b and 70b have them.
LLAMAS = (
    Shape("7B", 4096, 32, 11008, 4096, 16, ("attention",), recompute=False, gpu_gib=24),
    Shape("70B", 8192, 80, 28672, 1024, 64, ("attention", "mlp"), recompute=True, gpu_gib=80),
)


def child(way: str, model: str) -> dict[str, float]:
    """Weights and one step of one way, in bytes."""
    from benchmarks._case import Case, make_rows

    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows("chat", 16, sigma=0.5)
        case = Case(model, Path(folder), "sft", rows, lora=WAYS[way])
        loss = case.loss()
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        case.step()
        growth = resident("VmHWM") - before
    return {"weights": weight_bytes(case.bench.model), "growth": growth, "loss": loss, "tokens": case.tokens}


def weight_bytes(model: Any) -> int:
    """Storages of all parameters, and of the scales without which NF4 cannot be read."""
    tensors = list(model.parameters())
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            scales = state.state2  # of the scales: the second quantisation
            tensors += [state.absmax, state.code, state.offset, scales.absmax, scales.code]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def resident(field: str) -> int:
    """A field of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measured(model: str) -> dict[str, dict[str, float]]:
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.qlora_memory", "--child", way, model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    print("| | weights, MB | peak of a step above what was resident, MB | loss |")
    print("|---|---|---|---|")
    for way, m in found.items():
        print(f"| {way} | {m['weights'] / 1e6:.1f} | {m['growth'] / 1e6:.0f} | {m['loss']:.4f} |")
    print(f"weights, nf4 / bf16: {found['nf4']['weights'] / found['bf16']['weights']:.3f}\n")
    return found


def computed() -> dict[str, dict[str, float]]:
    print(
        f"GiB for a pass of {PASS_TOKENS} tokens; NF4 with double quantisation {NF4_BYTES:.4f} bytes a weight"
    )
    made = {
        f"{llama.name} {way}": llama.gib(weight_bytes)
        for llama in LLAMAS
        for way, weight_bytes in (("bf16", 2.0), ("nf4", NF4_BYTES))
    }
    print(f"| | {' | '.join(next(iter(made.values())))} | all | of one GPU's |")
    print("|---|---|---|---|---|---|---|")
    for llama in LLAMAS:
        for way in WAYS:
            parts = made[f"{llama.name} {way}"]
            cells = " | ".join(f"{part:.1f}" for part in parts.values())
            print(f"| {llama.name} {way} | {cells} | {sum(parts.values()):.1f} | {llama.gpu_gib} |")
    return made


def main() -> None:
    from largeforge_ray.store import open_store

    parser = argparse.ArgumentParser(description="Memory of QLoRA.")
    parser.add_argument("--store", default="./forge", help="a store that holds a base model")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child)))
        return
    refuse_busy()
    store = open_store(options.store)
    made = {"id": "qlora", "measured": measured(str(store.fetch(store.get("base")))), "computed": computed()}
    write_down("qlora", made, command=COMMAND)


if __name__ == "__main__":
    main()

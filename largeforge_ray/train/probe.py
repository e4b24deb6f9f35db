"""What an adapter does where it was trained: the reference that a serving engine is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from largeforge_ray.train.batch import Encoded, collate, score
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.tokens import TokenTable

PROBE_FILE = "probe.json"
PROBE_SEQUENCES = 4
PROBE_TOKENS = 256


def reference_probe(bench: Bench, lane: Any, table: TokenTable) -> dict[str, list[list[Any]]]:
    """Log-probabilities of every token after the first, of the beginnings of the first rows.

    Returns ``ids``, and for each of them one number less in ``adapted`` and, with the adapter off, in
    ``base``. Every worker has to call it, because a model divided among workers computes on all of them.
    """
    rows = range(min(PROBE_SEQUENCES, len(table)))
    ids = [table.row(i)[lane.objective.trained[0]].ids[:PROBE_TOKENS] for i in rows]
    if lane.stage.lora.quantize:
        bench, lane = _as_served(bench, lane)
    if bench.model.active_adapter != lane.name:
        bench.model.set_adapter(lane.name)
    bench.model.eval()
    adapted = _logps(bench, ids, nullcontext())
    base = _logps(bench, ids, bench.model.disable_adapter())
    bench.model.train()
    return {"ids": ids, "adapted": adapted, "base": base}


def _as_served(bench: Bench, lane: Any) -> tuple[Bench, Any]:
    """The lane's weights on the base as it is: the engine serves that and not the quantised one, and
    quantising moves log-probabilities more than most adapters do. In the host's memory, because what is
    trained quantised is what does not fit the device whole."""
    whole = lane.stage.lora.model_copy(update={"quantize": None})
    stage = lane.stage.model_copy(update={"lora": whole, "strategy": "ddp"})
    beside = Bench(stage, bench.model_dir, device="cpu")
    served = beside.add_lane(stage)
    served.put({n: w.cpu() for n, w in lane.weights().items()})
    return beside, served


def _logps(bench: Bench, ids: list[list[int]], switched: AbstractContextManager[Any]) -> list[list[float]]:
    import torch

    packed = bench.stage.batching == "packed"
    made = []
    with torch.no_grad(), switched:
        for one in ids:
            # Alone in its pass, as the engine computes it.
            batch = collate([Encoded(one, [True] * len(one))], packed=packed).to(bench.device)
            made.append(score(bench.model, batch).logps_N.tolist())
    return made

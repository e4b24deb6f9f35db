"""A worker's bench: the model, the rows, and what can be done with them between two updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import DIVIDES_WEIGHTS
from largeforge_ray.errors import ModelError
from largeforge_ray.models.hardware import detect
from largeforge_ray.store import local_folder
from largeforge_ray.train.algorithms import objective_for
from largeforge_ray.train.attention import register_attention
from largeforge_ray.train.batch import Batch, check_packing, collate, score
from largeforge_ray.train.holding import Sharded, shard
from largeforge_ray.train.lane import Lane
from largeforge_ray.train.lora import linear_names, lora_config
from largeforge_ray.train.objective import Known, Objective
from largeforge_ray.train.order import lay_out
from largeforge_ray.train.quantized import keep_for_training, nf4
from largeforge_ray.train.tokens import TokenTable

PACKING_TOLERANCE = 0.1
"""In mean log-probability: bfloat16 rounds to about 0.01, a sequence that sees its neighbour is off by 1."""
MEASURED_AT_ONCE = 64


class Bench:
    """One of ``workers`` workers: one frozen base, and a lane for each set of weights trained on it.

    Sums over workers go through ``torch.distributed``. What lanes share (the base, its precision, how
    rows are laid out) comes from ``stage``; what is a lane's own comes from the lane's.
    """

    def __init__(
        self, stage: Any, model_dir: str, *, rank: int = 0, workers: int = 1, device: str | None = None
    ) -> None:
        import torch

        self.stage, self.rank, self.workers = stage, rank, workers
        self.model_dir = str(local_folder(model_dir))
        self.device = torch.device(device or ("cuda" if detect().gpus else "cpu"))
        self.model: Any = load_base(stage, self.model_dir, self.device)
        self.lanes: dict[str, Any] = {}
        self._linear = linear_names(self.model)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    def add_lane(self, stage: Any, name: str = "default") -> Any:
        """Fresh weights to train, which start from the same numbers whatever lanes there are beside them."""
        import torch

        torch.manual_seed(stage.seed)
        mine = self._whole_model() if stage.lora is None else self._adapter(stage, name)
        self.model.train()
        objective = objective_for(stage.algorithm)
        lane = self._lane(stage, name, objective, mine | objective.own(self.model, name))
        if not self.lanes and stage.batching == "packed" and stage.algorithm.name != "reward":
            self._refuse_leaking()
        self.lanes[name] = lane
        return lane

    def _adapter(self, stage: Any, name: str) -> dict[str, Any]:
        from peft import PeftModel

        task = "SEQ_CLS" if stage.algorithm.name == "reward" else "CAUSAL_LM"
        config = lora_config(stage.lora, self._linear, task)
        if isinstance(self.model, PeftModel):
            self.model.add_adapter(name, config)
            # PEFT activates no adapter that is added, and takes one it deleted for active still.
            self.model.set_adapter(name)
        else:
            self.model = PeftModel(self.model, config, adapter_name=name)
        return {n: p for n, p in self.model.named_parameters() if f".{name}." in n}

    def _whole_model(self) -> dict[str, Any]:
        return dict(self.model.named_parameters())

    def _lane(self, stage: Any, name: str, objective: Objective, mine: dict[str, Any]) -> Any:
        """The weights as they are now, in float32, in a lane; the model goes on in its own precision."""
        dtype = self.model.dtype
        divided = self.workers > 1 and stage.strategy != "ddp"
        if not divided:
            lane = Lane(name, stage, objective, mine, self.model)
            for parameter in mine.values():
                parameter.data = parameter.data.to(dtype)
            return lane
        first = {n: p.detach().float().clone() for n, p in mine.items()}
        for parameter in mine.values():
            parameter.data = parameter.data.to(dtype)
        if stage.strategy == "fsdp2":
            shard(self.model, self.workers, self.device)
            names = dict(self.model.named_parameters())
            lane = Lane(name, stage, objective, {n: names[n] for n in mine}, self.model, Sharded())
            lane.put(first)
            return lane
        from largeforge_ray.train.zero import ZeroLane

        return ZeroLane(name, stage, objective, mine, self.model, self.workers, first)

    def remove_lane(self, name: str) -> None:
        """Forget a lane and free what it held."""
        del self.lanes[name]
        self.model.delete_adapter(name)

    def _refuse_leaking(self) -> None:
        leak = check_packing(self.model, min(1000, self.model.config.vocab_size))
        if leak > PACKING_TOLERANCE:
            raise ModelError(
                f"packed sequences of this model see each other (mean log-probability off by {leak:.2f}); "
                "set batching: bucketed"
            )

    def accumulate(
        self, lane: Lane, table: TokenTable, rows: Sequence[int], reference: Any, learn: bool = True
    ) -> dict[str, float]:
        """Loss and figures over ``rows``, means over all workers; with ``learn`` also the lane's gradient."""
        import torch

        o = lane.objective
        self.activate(lane)
        weight = float(table.learned[list(rows)][:, o.trained].sum()) if o.per_token else float(len(rows))
        context = self._context(lane, table, rows, reference)
        sums: dict[str, Any] = {}
        with nullcontext() if learn else torch.no_grad():
            passes = self._passes(table, rows, o.trained, lane.in_step)
            for number, (part, share) in enumerate(passes, 1):
                known = self._known(lane, table, part, o.trained, reference, context)
                made = o.loss(o.forward(lane.network, self.batch(table, part, o.trained)), known)
                if learn:
                    lane.backward(made.total * (share / weight), last=number == len(passes))
                for name, value in {"loss": made.total, **made.figures}.items():
                    sums[name] = sums.get(name, 0.0) + share * value.detach()
        return {
            name: value / (weight if name == "loss" else len(rows))
            for name, value in self._over_workers(o, sums).items()
        }

    def reference_logps(
        self, table: TokenTable, on_rows: Callable[[int], None], first: int | None = None
    ) -> Any:
        """Summed log-probabilities of every sequence with adapters off, float32 ``(rows, sequences)``; of the
        ``first`` rows if that is given.

        Of a whole model in training they are its own, so they are asked for before the first step.
        """
        import torch

        number = len(table) if first is None else min(first, len(table))
        made = torch.zeros(number, table.lengths.shape[1])
        in_step = any(lane.in_step for lane in self.lanes.values())
        for start in range(0, number, MEASURED_AT_ONCE):
            rows = range(start, min(start + MEASURED_AT_ONCE, number))
            for role in range(made.shape[1]):
                for part, share in self._passes(table, rows, (role,), in_step):
                    logps_S = self._reference(self.batch(table, part, (role,)))
                    if share:
                        made[part, role] = logps_S.float().cpu()
            on_rows(len(rows))
        return self._total(made)

    def token_logps(self, lane: Lane, table: TokenTable, *, adapter: bool = True) -> dict[int, list[float]]:
        """Log-probabilities of the learned tokens of those rows that fall to this worker, no gradient."""
        import torch

        made: dict[int, list[float]] = {}
        roles = lane.objective.trained
        self.activate(lane)
        with torch.no_grad(), nullcontext() if adapter else self.model.disable_adapter():
            for part, _ in self._passes(table, range(len(table)), roles, lane.in_step):
                scores = score(self.model, self.batch(table, part, roles))
                counts = table.learned[part][:, roles].sum(1).tolist()
                split = scores.logps_N.split(counts)
                made |= {row: logps.tolist() for row, logps in zip(part, split, strict=True)}
        return made

    def activate(self, lane: Lane) -> None:
        """Let the model compute with the lane's adapter."""
        if lane.stage.lora is not None and self.model.active_adapter != lane.name:
            self.model.set_adapter(lane.name)

    def _context(self, lane: Lane, table: TokenTable, rows: Sequence[int], reference: Any) -> Any:
        import torch

        o = lane.objective
        if not o.observed:
            return None
        seen = []
        with torch.no_grad():
            for part, share in self._passes(table, rows, o.observed, lane.in_step):
                known = self._known(lane, table, part, o.observed, reference, None)
                made = o.forward(self.model, self.batch(table, part, o.observed))
                if share:
                    seen.append((made, known))
        return o.context(seen, self._total)

    def _passes(
        self, table: TokenTable, rows: Sequence[int], roles: tuple[int, ...], in_step: bool
    ) -> list[tuple[list[int], float]]:
        """This worker's passes as rows and their share: 1, or 0 of a pass that is only there so that the
        workers stay in step."""
        # A row's sequences stay together, so a row is as long as all of them; padded, as its longest.
        lengths = table.lengths[:, roles]
        packed = self.stage.batching == "packed"
        by_row = lengths.sum(1) if packed else lengths.max(1) * len(roles)
        dealt = lay_out(
            rows,
            by_row,
            batching=self.stage.batching,
            tokens_per_pass=self.stage.tokens_per_pass,
            workers=self.workers,
        )
        mine = dealt[self.rank]
        return [(part or [rows[0]], float(bool(part))) for part in mine if part or in_step]

    def batch(self, table: TokenTable, rows: Sequence[int], roles: tuple[int, ...]) -> Batch:
        sequences = [table.row(r)[role] for r in rows for role in roles]
        return collate(sequences, packed=self.stage.batching == "packed").to(self.device)

    def _known(
        self,
        lane: Lane,
        table: TokenTable,
        rows: Sequence[int],
        roles: tuple[int, ...],
        reference: Any,
        context: Any,
    ) -> Known:
        import torch

        logps = None
        if lane.stage.algorithm.compares:
            if reference is None:
                logps = self._reference(self.batch(table, rows, roles))
            else:
                logps = reference[list(rows)][:, list(roles)].flatten().to(self.device)
        labels = [table.label(r) for r in rows]
        known = None if labels[0] is None else torch.tensor(labels, device=self.device)
        return Known(logps, known, context, table.signals(rows, self.device))

    def _reference(self, batch: Batch) -> Any:
        import torch

        whole = not hasattr(self.model, "disable_adapter")
        with torch.no_grad(), nullcontext() if whole else self.model.disable_adapter():
            return score(self.model, batch).sums_S()

    def _over_workers(self, objective: Objective, sums: dict[str, Any]) -> dict[str, float]:
        """Names are the same on every worker, also on one that had no row this time."""
        import torch

        names = ["loss", *objective.figures]
        total = self._total(torch.stack([torch.as_tensor(sums.get(n, 0.0)).float().cpu() for n in names]))
        return dict(zip(names, total.tolist(), strict=True))

    def _total(self, tensor: Any) -> Any:
        import torch.distributed as dist

        if self.workers > 1:
            moved = tensor.to(self.device)
            dist.all_reduce(moved)
            tensor = moved.to(tensor.device)
        return tensor


def load_base(stage: Any, model_dir: str, device: Any) -> Any:
    """The base model in the stage's precision; for a reward model with a fresh head of one output."""
    import torch
    import transformers

    head: Any = transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": getattr(torch, stage.precision)}
    if stage.algorithm.name == "reward":
        head = transformers.AutoModelForSequenceClassification
        options["num_labels"] = 1
    if stage.batching == "packed":
        options["attn_implementation"] = register_attention()
    quantized = stage.lora is not None and stage.lora.quantize is not None
    if quantized:
        options |= {"quantization_config": nf4(options["dtype"]), "device_map": {"": str(device)}}
    torch.manual_seed(stage.seed)
    model = head.from_pretrained(Path(model_dir), use_safetensors=True, **options)
    if quantized:
        keep_for_training(model)
    elif stage.strategy not in DIVIDES_WEIGHTS:
        # What is divided goes to the device layer by layer, and so needs no room for the whole.
        model = model.to(device)
    if stage.recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model

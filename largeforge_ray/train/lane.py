"""A lane: what one set of trained weights needs beside the frozen model.

The model computes in its own precision (bfloat16). The lane keeps its weights a second time, in
float32 and end to end in one vector, so that gradients of many passes and workers add up without
rounding and the update, the clipping and the sum over workers are one operation each.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.holding import Holding, Replicated
from largeforge_ray.train.objective import Objective

Tensor = Any
MOMENTS = ("exp_avg", "exp_avg_sq")


def state_name(kind: str, parameter: str, lane: str) -> str:
    """What a value is called in a lane's state: the same in every lane, so that any may take it up."""
    return f"{kind}/{parameter.replace(f'.{lane}.', '.')}"


class Lane:
    """The trained parameters ``named`` of ``network``, and AdamW, Loshchilov and Hutter 2019
    (arXiv:1711.05101).

    ``holding`` says which part of them is this worker's. What leaves the lane (``weights``, ``state``)
    is whole and by name, so a checkpoint fits any number of workers and any way to divide.
    """

    def __init__(
        self,
        name: str,
        stage: Any,
        objective: Objective,
        named: dict[str, Any],
        network: Any,
        holding: Holding | None = None,
    ) -> None:
        import torch

        self.name, self.stage, self.objective, self.parameters = name, stage, objective, named
        self.network = network
        self.holding = holding or Replicated()
        # Whether every worker has to go through the model as often as the others.
        self.in_step = self.holding.divides
        flat = torch.cat([self.holding.mine(p).detach().float().flatten() for p in named.values()])
        self.flat = torch.nn.Parameter(flat)
        self.gradient = self.flat.grad = torch.zeros_like(flat)
        self.optimizer = make_optimizer(stage, [self.flat])

    @property
    def size(self) -> int:
        """How many numbers are trained, over all workers."""
        return sum(p.numel() for p in self.parameters.values())

    def _split(self, vector: Tensor) -> list[tuple[Any, str, Tensor]]:
        mine = [self.holding.mine(p) for p in self.parameters.values()]
        parts = vector.split([m.numel() for m in mine])
        named = zip(self.parameters.items(), mine, parts, strict=True)
        return [(p, n, part.view_as(m)) for (n, p), m, part in named]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss`` to the lane's; ``last`` of the step's."""
        loss.backward()
        for parameter, _, total in self._split(self.gradient):
            if parameter.grad is not None:
                total.add_(self.holding.mine(parameter.grad))
                parameter.grad = None

    def step(self, learning_rate: float) -> float:
        """Sum gradients over workers, clip, update the model. Returns the norm before clipping."""
        self.holding.sum_gradient(self.gradient)
        norm = self.holding.norm(self.gradient)
        if norm > self.stage.max_grad_norm:
            self.gradient.mul_(self.stage.max_grad_norm / norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.gradient.zero_()
        self.publish()
        return norm

    def publish(self) -> None:
        """Copy the float32 weights into the model."""
        import torch

        with torch.no_grad():
            for parameter, _, value in self._split(self.flat.data):
                self.holding.mine(parameter).copy_(value)

    def weights(self) -> dict[str, Tensor]:
        """The float32 weights by name, whole. Every worker has to ask."""
        return self._whole(self.flat.data)

    def put(self, weights: dict[str, Tensor]) -> None:
        """Take over whole weights by name."""
        self._take(self.flat.data, weights)
        self.publish()

    def state(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on, as tensors. Every worker has to ask."""
        kept = self.optimizer.state.get(self.flat, {})
        vectors = {"weights": self.flat.data} | {m: kept[m] for m in MOMENTS if m in kept}
        made = {
            state_name(kind, name, self.name): value
            for kind, vector in vectors.items()
            for name, value in self._whole(vector).items()
        }
        return made | ({"step": kept["step"]} if "step" in kept else {})

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        import torch

        self.put(self._of(state, "weights"))
        if "step" not in state:
            return
        # The fused optimizer keeps the count of updates where the weights are, too.
        kept = {"step": state["step"].to(self.flat.device)}
        for moment in MOMENTS:
            kept[moment] = torch.zeros_like(self.flat.data)
            self._take(kept[moment], self._of(state, moment))
        self.optimizer.state[self.flat] = kept

    def _of(self, state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        return {n: state[state_name(kind, n, self.name)] for n in self.parameters}

    def _whole(self, vector: Tensor) -> dict[str, Tensor]:
        return {n: self.holding.whole(p, value) for p, n, value in self._split(vector)}

    def _take(self, vector: Tensor, values: dict[str, Tensor]) -> None:
        for parameter, name, place in self._split(vector):
            place.copy_(self.holding.part(parameter, values[name]))


def make_optimizer(stage: Any, weights: list[Any]) -> Any:
    """AdamW; paged, its moments lie in memory that the GPU's driver moves to the host when it must.

    On a CPU the moments are in the host's memory anyway, so ``paged_adamw`` is AdamW there.
    """
    import torch

    if stage.optimizer == "paged_adamw" and weights[0].is_cuda:
        from bitsandbytes.optim import PagedAdamW32bit

        return PagedAdamW32bit(weights, weight_decay=stage.weight_decay)
    return torch.optim.AdamW(weights, weight_decay=stage.weight_decay, fused=True)

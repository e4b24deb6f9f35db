"""A lane: what one set of trained weights needs beside the frozen model.

The model computes in its own precision (bfloat16). The lane keeps its weights a second time, in
float32 and end to end in one vector, so that gradients of many passes and workers add up without
rounding and the update, the clipping and the sum over workers are one operation each.
"""

from __future__ import annotations

from typing import Any

from largeforge_ray.train.objective import Objective

Tensor = Any


class Lane:
    """The trained parameters ``named`` with AdamW, Loshchilov and Hutter 2019 (arXiv:1711.05101)."""

    def __init__(self, name: str, stage: Any, objective: Objective, named: dict[str, Any]) -> None:
        import torch

        self.name, self.stage, self.objective, self.parameters = name, stage, objective, named
        flat = torch.cat([p.detach().float().flatten() for p in named.values()])
        self.weights = torch.nn.Parameter(flat)
        self.gradient = self.weights.grad = torch.zeros_like(flat)
        self.optimizer = torch.optim.AdamW([self.weights], weight_decay=stage.weight_decay, fused=True)

    def views(self) -> dict[str, Tensor]:
        """The float32 weights by name, in their shapes."""
        return dict(self._split(self.weights.data))

    def _split(self, vector: Tensor) -> list[tuple[str, Tensor]]:
        parts = vector.split([p.numel() for p in self.parameters.values()])
        return [(n, v.view_as(p)) for (n, p), v in zip(self.parameters.items(), parts, strict=True)]

    def collect(self) -> None:
        """Add the gradients of the last backward pass to the lane's, and clear them."""
        for name, total in self._split(self.gradient):
            parameter = self.parameters[name]
            if parameter.grad is not None:
                total.add_(parameter.grad)
                parameter.grad = None

    def step(self, learning_rate: float) -> float:
        """Sum gradients over workers, clip, update the model. Returns the norm before clipping."""
        import torch.distributed as dist

        grad = self.gradient
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(grad)
        norm = float(grad.norm())
        if norm > self.stage.max_grad_norm:
            grad.mul_(self.stage.max_grad_norm / norm)
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        grad.zero_()
        self.publish()
        return norm

    def publish(self) -> None:
        """Copy the float32 weights into the model."""
        import torch

        with torch.no_grad():
            for name, value in self._split(self.weights.data):
                self.parameters[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on, as tensors."""
        kept = self.optimizer.state.get(self.weights, {})
        return {"weights": self.weights.data, **{f"adamw.{k}": v for k, v in kept.items()}}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        self.weights.data.copy_(state["weights"])
        device = self.weights.device
        # The fused optimizer keeps the count of updates where the weights are, too.
        self.optimizer.state[self.weights] = {
            k.removeprefix("adamw."): v.to(device) for k, v in state.items() if k.startswith("adamw.")
        }
        self.publish()

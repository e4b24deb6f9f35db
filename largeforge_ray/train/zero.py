"""A lane whose optimizer is DeepSpeed's ZeRO (read in DeepSpeed 0.19.8), Rajbhandari et al. 2020.

Stage 1 divides the optimizer's state among the workers, 2 the gradients too, 3 the weights too
(arXiv:1910.02054). DeepSpeed averages gradients in the model's precision where other lanes add
them up in float32, so losses agree with theirs to that precision's rounding.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from largeforge_ray.errors import ResourceError
from largeforge_ray.train.lane import MOMENTS, Tensor, make_optimizer, state_name
from largeforge_ray.train.objective import Objective


class ZeroLane:
    """The same face as ``Lane``. ``weights`` are the float32 values that training starts from."""

    in_step: ClassVar[bool] = True
    network: Any
    """What computes a pass: stage 3 counts passes in the forward of its own."""

    def __init__(
        self,
        name: str,
        stage: Any,
        objective: Objective,
        named: dict[str, Any],
        model: Any,
        workers: int,
        weights: dict[str, Tensor],
    ) -> None:
        self.name, self.stage, self.objective, self.parameters = name, stage, objective, named
        self.size = sum(p.numel() for p in named.values())
        self._workers = workers
        deepspeed = import_deepspeed()
        self.network, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=make_optimizer(stage, list(named.values())),
            config=_config(stage),
            dist_init_required=False,
        )
        self._make_moments(model)
        self.put(weights)

    def _make_moments(self, model: Any) -> None:
        """Moments are there from the first update on, and are loaded before it: one update by nothing."""
        import torch

        device = next(model.parameters()).device
        logits = self.network(input_ids=torch.zeros(1, 2, dtype=torch.long, device=device), use_cache=False)[
            0
        ]
        self.backward(logits.sum() * 0.0, last=True)
        self.step(0.0)
        self._count(0.0)

    def _count(self, updates: float | None = None) -> float:
        """The optimizer's number of updates, set to ``updates`` if given."""
        found = 0.0
        for kept in self._optimizer.optimizer.state.values():
            if "step" in kept:
                if updates is not None:
                    kept["step"].fill_(updates)
                found = float(kept["step"])
        return found

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``; ``last`` of the step's."""
        self.network.set_gradient_accumulation_boundary(last)
        # DeepSpeed takes the mean over workers of what here is a sum.
        self.network.backward(loss * self._workers)
        if not last:
            self.network.step()

    def step(self, learning_rate: float) -> float:
        """Clip and update. Returns the norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self.network.step()
        return float(self.network.get_global_grad_norm() or 0.0)

    def weights(self) -> dict[str, Tensor]:
        """The float32 weights by name, whole. Every worker has to ask."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {n: safe_get_full_fp32_param(p).detach() for n, p in self.parameters.items()}

    def put(self, weights: dict[str, Tensor]) -> None:
        """Take over whole weights by name, in float32 and in the model."""
        import deepspeed
        import torch
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, weights[name])
            # Every worker writes the same; of a divided one each then keeps its share of the first's.
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                parameter.copy_(weights[name])

    def state(self) -> dict[str, Tensor]:
        """Everything a later process needs to go on, as tensors. Every worker has to ask."""
        import torch
        from deepspeed.utils import safe_get_full_optimizer_state

        made = {state_name("weights", n, self.name): w for n, w in self.weights().items()}
        for moment in MOMENTS:
            for name, parameter in self.parameters.items():
                value = safe_get_full_optimizer_state(parameter, moment).detach()
                made[state_name(moment, name, self.name)] = value
        return made | {"step": torch.tensor(self._count())}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` returned."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self.put({n: state[state_name("weights", n, self.name)] for n in self.parameters})
        for moment in MOMENTS:
            for name, parameter in self.parameters.items():
                if (kept := state_name(moment, name, self.name)) in state:
                    safe_set_full_optimizer_state(parameter, state[kept], moment)
        self._count(float(state.get("step", 0.0)))


def import_deepspeed() -> Any:
    """DeepSpeed, told whether there is a GPU. Raises ``ResourceError`` if it is not installed."""
    from largeforge_ray.models.hardware import detect, library_env

    for name, value in library_env().items():
        os.environ.setdefault(name, value)
    try:
        import deepspeed
    except ImportError:
        raise ResourceError(
            "strategy zero needs DeepSpeed, which is not installed; run: pip install deepspeed==0.19.8, "
            "or set strategy: fsdp2"
        ) from None
    if detect().device == "cpu":
        # It would be compiled at the first use, which takes half a minute and a compiler, to save copies
        # between workers on one machine.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _config(stage: Any) -> dict[str, Any]:
    return {
        # Steps are made of passes here; DeepSpeed is told of each pass and of the last one.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": stage.max_grad_norm,
        "bf16": {"enabled": stage.precision == "bfloat16"},
        "zero_optimization": {"stage": int(stage.strategy[-1])},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }

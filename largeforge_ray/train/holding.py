"""Which part of the trained weights a worker holds: all of it (DDP), or a share (FSDP2, torch 2.13)."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

Tensor = Any


class Holding(Protocol):
    """How a lane's vector on this worker stands to the whole weights."""

    divides: ClassVar[bool]

    def mine(self, tensor: Tensor) -> Tensor:
        """This worker's part of a parameter or gradient of the model, no copy."""

    def sum_gradient(self, gradient: Tensor) -> None:
        """Make ``gradient`` the sum over workers, in place."""

    def norm(self, gradient: Tensor) -> float:
        """The norm of the whole gradient."""

    def whole(self, parameter: Any, value: Tensor) -> Tensor:
        """Put the workers' parts of a value together."""

    def part(self, parameter: Any, value: Tensor) -> Tensor:
        """This worker's part of a whole value."""


class Replicated:
    """Every worker holds everything: data parallel, Li et al. 2020 (arXiv:2006.15704)."""

    divides: ClassVar[bool] = False

    def mine(self, tensor: Tensor) -> Tensor:
        return tensor

    def sum_gradient(self, gradient: Tensor) -> None:
        import torch.distributed as dist

        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(gradient)

    def norm(self, gradient: Tensor) -> float:
        return float(gradient.norm())

    def whole(self, parameter: Any, value: Tensor) -> Tensor:
        return value

    def part(self, parameter: Any, value: Tensor) -> Tensor:
        return value


class Sharded:
    """Each worker holds a share of every parameter: fully sharded, Zhao et al. 2023 (arXiv:2304.11277)."""

    divides: ClassVar[bool] = True

    def mine(self, tensor: Tensor) -> Tensor:
        return tensor.to_local() if hasattr(tensor, "to_local") else tensor

    def sum_gradient(self, gradient: Tensor) -> None:
        """The backward pass has summed and divided it."""

    def norm(self, gradient: Tensor) -> float:
        import torch.distributed as dist

        squares = gradient.square().sum()
        dist.all_reduce(squares)
        return float(squares.sqrt())

    def whole(self, parameter: Any, value: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor

        mesh, placements = parameter.device_mesh, parameter.placements
        return DTensor.from_local(
            value, mesh, placements, shape=parameter.shape, stride=parameter.stride()
        ).full_tensor()

    def part(self, parameter: Any, value: Tensor) -> Tensor:
        from torch.distributed.tensor import distribute_tensor

        # Every worker has read the same checkpoint, so nothing needs to be sent.
        return distribute_tensor(
            value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        ).to_local()


def shard(model: Any, workers: int, device: Any) -> None:
    """Divide ``model`` among the workers, a layer at a time; each layer is put together while it computes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (workers,))
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = set(network._no_split_modules or ())
    for module in network.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # The loss is divided by the weight of the whole step, so gradients add up.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

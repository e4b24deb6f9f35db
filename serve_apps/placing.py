"""What an engine asks of the cluster: how many workers share its model, where they may be, and how many such
engines there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from largeforge_ray.config.base import NamedResources, Strict
from largeforge_ray.errors import ConfigError
from largeforge_ray.routing.experts import Backend, ModelGroup

HEADS = ("num_attention_heads", "n_head")
LAYERS = ("num_hidden_layers", "n_layer")


class Placing(Strict):
    """Of one engine; what is not given is as for all of them. Names are vLLM's, Ray's and Ray Serve's."""

    tensor_parallel_size: int = Field(1, ge=1, description="Workers that have a part of every layer each.")
    pipeline_parallel_size: int = Field(1, ge=1, description="Workers that have some of the layers each.")
    across_nodes: bool = Field(
        False, description="Workers may be on several nodes with GPUs; else one node has them all."
    )
    accelerator_type: str | None = Field(
        None, description="Of the nodes it runs on, as Ray names it: L4, H100."
    )
    resources: NamedResources = Field({}, description="Named resources of nodes that a replica asks for.")
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    max_num_seqs: int = Field(16, ge=1)

    @property
    def workers(self) -> int:
        """Processes that compute, each on a GPU or a CPU of its own."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    def engine_args(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's ``AsyncEngineArgs``."""
        if self.workers == 1:
            return {}
        return {
            "tensor_parallel_size": self.tensor_parallel_size,
            "pipeline_parallel_size": self.pipeline_parallel_size,
            "distributed_executor_backend": "ray" if self.across_nodes else "mp",
        }

    def deployment(self, gpus_each: int) -> dict[str, Any]:
        """Options of the engine's Serve deployment; a worker has ``gpus_each`` GPUs, or a CPU."""
        asked: dict[str, Any] = dict(self.resources)
        if not self.across_nodes:
            held = {"num_cpus": 1 if gpus_each else self.workers, "num_gpus": gpus_each * self.workers}
            kind = {"accelerator_type": self.accelerator_type} if self.accelerator_type else {}
            return {"ray_actor_options": held | kind | {"resources": asked}}
        if self.accelerator_type:
            asked[f"accelerator_type:{self.accelerator_type}"] = 0.001
        # vLLM starts its workers in the bundles with a GPU of the group that the replica is in.
        return {
            "ray_actor_options": {"num_cpus": 1},
            "placement_group_bundles": [{"CPU": 1}, *([{"GPU": gpus_each} | asked] * self.workers)],
            "placement_group_strategy": "PACK",
        }

    def check(self, config: Mapping[str, Any], backend: Backend, gpus_each: int, where: str) -> None:
        """Raises ``ConfigError`` if the engine could not divide the model of a ``config.json`` so."""
        if backend != "vllm" and (self.workers > 1 or self.across_nodes):
            raise ConfigError(f"{where}: backend {backend} is one process; leave out what divides it")
        config = config.get("text_config") or config
        heads, layers = (next((config[f] for f in fields if f in config), 0) for fields in (HEADS, LAYERS))
        if heads % self.tensor_parallel_size:
            fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
            raise ConfigError(
                f"{where}: tensor_parallel_size {self.tensor_parallel_size} does not divide its {heads} "
                f"attention heads; choose one of: {fitting}"
            )
        if layers and self.pipeline_parallel_size > layers:
            raise ConfigError(
                f"{where}: pipeline_parallel_size {self.pipeline_parallel_size} exceeds its {layers} layers"
            )
        # vLLM 0.29 starts CPU workers on its own node alone, and a second stage fails at its first step.
        across = "across_nodes" if self.across_nodes else "pipeline_parallel_size"
        if (self.across_nodes or self.pipeline_parallel_size > 1) and not gpus_each:
            raise ConfigError(f"{where}: {across} wants GPUs, and the cluster has none; leave it out")


def placings(
    groups: tuple[ModelGroup, ...], given: Mapping[str, Placing], usual: Placing
) -> dict[str, Placing]:
    """By model key, what each engine asks for: what is ``given`` for one of its experts, else the ``usual``.

    Raises ``ConfigError`` for an expert that is not there, and for two different ones of one engine.
    """
    names = {expert.name: group.model_key for group in groups for expert in group.experts}
    made: dict[str, Placing] = {}
    for name, placing in given.items():
        if name not in names:
            raise ConfigError(f"engines names '{name}', which is no expert; there are: {', '.join(names)}")
        if made.setdefault(names[name], placing) != placing:
            sharing = ", ".join(other for other in given if names[other] == names[name])
            raise ConfigError(f"engines: {sharing} share an engine; say what it asks for once")
    said = {key: placing.model_dump(exclude_unset=True) for key, placing in made.items()}
    return {g.model_key: usual.model_copy(update=said.get(g.model_key, {})) for g in groups}

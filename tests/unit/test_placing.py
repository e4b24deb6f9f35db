"""What an engine asks of the cluster: read, checked, and turned into options of vLLM and of Ray Serve."""

from __future__ import annotations

import os
from typing import Any

import pytest

from largeforge_ray.errors import ConfigError
from largeforge_ray.models.hardware import Hardware, engine_env
from largeforge_ray.routing import parse_router
from largeforge_ray.routing.experts import model_groups
from serve_apps.forge import _say_if_waiting, parse_args
from serve_apps.placing import Placing, placings
from tests.unit.test_embeddings import EMBEDDER
from tests.unit.test_routing import ADAPTER, MODEL, expert, router

OTHER = "e" * 64
GROUPS = model_groups(
    parse_router(router(expert("base"), expert("tuned", ADAPTER), expert("large", model_key=OTHER), EMBEDDER))
)
USUAL = Placing(min_replicas=0, max_replicas=3, max_num_seqs=8)


def test_an_engine_has_what_is_said_of_any_of_its_experts_and_the_usual_beside() -> None:
    made = placings(GROUPS, {"tuned": Placing(tensor_parallel_size=2, max_replicas=1)}, USUAL)
    assert made[MODEL] == Placing(tensor_parallel_size=2, min_replicas=0, max_replicas=1, max_num_seqs=8)
    assert made[OTHER] == made[EMBEDDER["model_key"]] == USUAL


def test_who_is_no_expert_is_named_with_those_that_are() -> None:
    with pytest.raises(
        ConfigError, match="'small', which is no expert; there are: base, tuned, large, minilm"
    ):
        placings(GROUPS, {"small": Placing()}, USUAL)


def test_one_engine_is_told_one_thing() -> None:
    twice = {"base": Placing(tensor_parallel_size=2), "tuned": Placing(tensor_parallel_size=4)}
    with pytest.raises(ConfigError, match="base, tuned share an engine"):
        placings(GROUPS, twice, USUAL)
    assert placings(GROUPS, dict.fromkeys(twice, Placing(max_num_seqs=2)), USUAL)[MODEL].max_num_seqs == 2


@pytest.mark.parametrize(
    "given", ["{base: {tensor_parallel_size: 2}}", {"base": {"tensor_parallel_size": 2}}]
)
def test_engines_are_yaml_on_a_command_line_and_fields_in_a_file(given: Any) -> None:
    assert parse_args(engines=given).engines == {"base": Placing(tensor_parallel_size=2)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "{base: {tensor_parallel_sizes: 2}}",
            "'engines.base.tensor_parallel_sizes' does not exist; did you mean 'tensor_parallel_size'",
        ),
        ("{base: {tensor_parallel_size: 0}}", "engines.base.tensor_parallel_size '?0"),
        ("{base: {resources: {GPU: 1}}}", "'GPU' is held by every process"),
        ("{base: {resources: {rack: 1.5}}}", "breaks Ray's rule for amounts"),
        ("[base", "engines"),
        ("base", "engines"),
    ],
)
def test_what_is_wrong_is_named(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_args(engines=given)


# Options.

FOUR = Placing(
    tensor_parallel_size=2, pipeline_parallel_size=2, accelerator_type="L4", resources={"rack": 0.5}
)


def test_one_node_has_all_workers_of_an_engine() -> None:
    assert FOUR.engine_args() == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "distributed_executor_backend": "mp",
    }
    asked = FOUR.deployment(gpus_each=1)["ray_actor_options"]
    assert asked == {"num_cpus": 1, "num_gpus": 4, "accelerator_type": "L4", "resources": {"rack": 0.5}}
    asked = FOUR.deployment(gpus_each=0)["ray_actor_options"]
    assert (asked["num_cpus"], asked["num_gpus"]) == (4, 0)


def test_workers_on_several_nodes_are_bundles_of_a_group() -> None:
    from ray import serve

    far = FOUR.model_copy(update={"across_nodes": True})
    assert far.engine_args()["distributed_executor_backend"] == "ray"
    options = far.deployment(gpus_each=1)
    worker = {"GPU": 1, "rack": 0.5, "accelerator_type:L4": 0.001}
    assert options["placement_group_bundles"] == [{"CPU": 1}, worker, worker, worker, worker]
    assert options["placement_group_strategy"] == "PACK"
    serve.deployment(type("Engine", (), {}), **options)  # Serve takes them


def test_an_engine_of_one_worker_is_as_ever() -> None:
    assert Placing().engine_args() == {}
    assert Placing().deployment(1) == {"ray_actor_options": {"num_cpus": 1, "num_gpus": 1, "resources": {}}}


# Before it starts.


SMALL = {"num_attention_heads": 9, "num_hidden_layers": 30}


@pytest.mark.parametrize(
    ("placing", "said"),
    [
        (Placing(tensor_parallel_size=2), "2 does not divide its 9 attention heads; choose one of: 1, 3, 9"),
        (Placing(pipeline_parallel_size=31), "pipeline_parallel_size 31 exceeds its 30 layers"),
        (Placing(pipeline_parallel_size=2), "pipeline_parallel_size wants GPUs, and the cluster has none"),
        (Placing(tensor_parallel_size=3, across_nodes=True), "across_nodes wants GPUs"),
    ],
)
def test_a_model_that_cannot_be_divided_so_is_refused(placing: Placing, said: str) -> None:
    for told in (SMALL, {"text_config": SMALL}):
        with pytest.raises(ConfigError, match=f"the engine of base: .*{said}"):
            placing.check(told, "vllm", 0, "the engine of base")


def test_transformers_has_one_process() -> None:
    with pytest.raises(ConfigError, match="backend transformers is one process"):
        Placing(tensor_parallel_size=3).check(SMALL, "transformers", 1, "the engine of base")


def test_a_model_that_can_be_divided_is_not_refused() -> None:
    Placing(tensor_parallel_size=3, pipeline_parallel_size=30).check(SMALL, "vllm", 1, "")
    Placing(tensor_parallel_size=3).check(SMALL, "vllm", 0, "")
    Placing(tensor_parallel_size=3, across_nodes=True).check(SMALL, "vllm", 1, "")
    Placing(tensor_parallel_size=2).check({}, "vllm", 0, "")  # vLLM will know


def test_workers_on_a_cpu_have_cpus_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 8})
    machine = Hardware(cpus=5, gpus=0, memory_gib=8, disk_gib=8)
    bound = engine_env(machine, workers=2)
    assert bound["VLLM_CPU_OMP_THREADS_BIND"] == "0,2,8|1,3"
    assert bound["OMP_NUM_THREADS"] == "2"
    assert engine_env(machine)["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,2,3,8"
    with pytest.raises(ConfigError, match="an engine of 6 workers wants a CPU for each, and here are 5"):
        engine_env(machine, workers=6)


def test_an_engine_that_no_node_is_large_enough_for_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    nodes = [{"Alive": True, "Resources": {"CPU": 2.0}}, {"Alive": False, "Resources": {"CPU": 64.0}}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("serve_apps.forge.gpus_each", lambda: 0)
    _say_if_waiting(Placing(tensor_parallel_size=2), "the engine of base")
    assert caplog.messages == []
    _say_if_waiting(Placing(tensor_parallel_size=3), "the engine of base")
    assert caplog.messages == ["the engine of base waits for a node with 3 CPUs: the largest has 2"]

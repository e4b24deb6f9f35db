"""A merged model computes what base and adapter compute, and is as complete a folder as its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.errors import StageError
from largeforge_ray.train.lora import save_adapter
from largeforge_ray.train.merge import MergeJob, merge
from tests.unit._tiny import bench_of, make_rows, stage_of, tiny_model

CHATS = tuple(tuple(row["messages"]) for row in make_rows("chat", 4))
IDS = [5, 9, 2, 14, 3, 8, 8, 1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a store keeps one: in bfloat16."""
    import torch
    import transformers

    folder = tiny_model(tmp_path_factory.mktemp("merge"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    (folder / "chat_template_notes.txt").write_text("kept")
    (folder / "artifact.json").write_text("the base's own record")
    return folder


def adapter_of(base: Path, folder: Path, **lora: Any) -> Path:
    bench = bench_of(base, stage_of("sft", lora={"rank": 4, "alpha": 8} | lora))
    folder.mkdir()
    save_adapter(bench.model, "default", bench.lane.weights(), folder)
    return folder


def job_of(base: Path, adapter: Path, folder: Path, **more: Any) -> MergeJob:
    target = folder / "merged"
    target.mkdir()
    return MergeJob(str(base), str(adapter), str(target), CHATS, **more)


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([IDS]), use_cache=False).logits.float()


def load(folder: Path, **options: Any) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, **({"dtype": torch.float32} | options))


@pytest.mark.parametrize("lora", [{}, {"rslora": True}, {"dora": True}], ids=["lora", "rslora", "dora"])
def test_a_merged_model_computes_what_base_and_adapter_do(base: Path, tmp_path: Path, lora: Any) -> None:
    from peft import PeftModel

    adapter = adapter_of(base, tmp_path / "adapter", **lora)
    figures = merge(job_of(base, adapter, tmp_path))
    plain, merged = load(base), load(tmp_path / "merged")
    expected = logits(PeftModel.from_pretrained(load(base), adapter))
    rounding = (logits(merged) - expected).abs().max()
    assert rounding < 0.1 * (logits(plain) - expected).abs().max()
    assert figures["merged"] < 1e-5 * figures["largest_logit"]
    assert figures["merged"] < figures["written"] < 0.1 * figures["from_base"]
    assert figures["chats"] == 4


def test_a_merged_folder_is_as_complete_as_its_base(base: Path, tmp_path: Path) -> None:
    import torch
    import transformers
    from safetensors.torch import load_file

    merge(job_of(base, adapter_of(base, tmp_path / "adapter"), tmp_path))
    made = tmp_path / "merged"
    assert {p.name for p in base.iterdir()} - {p.name for p in made.iterdir()} == {"artifact.json"}
    assert (made / "config.json").read_bytes() == (base / "config.json").read_bytes()
    chat = list(CHATS[0])
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(f) for f in (made, base))
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)

    weights, before = (load_file(f / "model.safetensors") for f in (made, base))
    assert {n: (w.dtype, w.shape) for n, w in weights.items()} == {
        n: (w.dtype, w.shape) for n, w in before.items()
    }
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}


def test_an_adapter_that_changes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    adapter = adapter_of(base, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    nothing = {n: 0 * w if ".lora_B." in n else w for n, w in weights.items()}
    save_file(nothing, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    job = job_of(base, adapter, tmp_path)
    with pytest.raises(StageError, match=r"the adapter changes nothing: .* 0\.00e\+00 from the base's"):
        merge(job)
    assert list(Path(job.target).iterdir()) == []


def test_a_merge_that_computes_something_else_is_refused_with_its_numbers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter of many would be whose layers PEFT merges in another way than it computes them."""
    from peft.tuners.lora import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 1.01 * right(self, name))
    job = job_of(base, adapter_of(base, tmp_path / "adapter"), tmp_path)
    with pytest.raises(StageError, match=r"merged logits differ .* more than \S+ \(0\.0001 of the largest\)"):
        merge(job)
    assert list(Path(job.target).iterdir()) == []


def test_a_qlora_adapter_is_merged_into_the_weights_it_was_trained_on(base: Path, tmp_path: Path) -> None:
    """What is written is the base as bitsandbytes rounds it, and the adapter, and no other base."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from peft import PeftModel

    adapter = adapter_of(base, tmp_path / "adapter")
    figures = merge(job_of(base, adapter, tmp_path, nf4="bfloat16"))
    trained_on = load(base)
    for layer in (m for n, m in trained_on.named_modules() if n.startswith("model.layers.")):
        if isinstance(layer, torch.nn.Linear):
            packed = quantize_4bit(layer.weight.data.bfloat16(), compress_statistics=True, quant_type="nf4")
            layer.weight.data = dequantize_4bit(*packed).float()
    expected = logits(PeftModel.from_pretrained(trained_on, adapter))
    on_the_base = logits(PeftModel.from_pretrained(load(base), adapter))
    made = logits(load(tmp_path / "merged"))
    assert figures["merged"] < 1e-5 * figures["largest_logit"]
    assert (made - expected).abs().mean() < 0.2 * (on_the_base - expected).abs().mean()
    settings = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in settings

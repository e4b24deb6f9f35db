"""A worker's bench: going on from a checkpoint, what is trained, and what an adapter's files hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from largeforge_ray.errors import DataError, ModelError
from largeforge_ray.train.lora import choose_targets
from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, tiny_model
from tests.unit.test_chat_mask import CHATML, tokenizer_with


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def take_steps(bench, table, steps: range) -> list[float]:
    from largeforge_ray.train.order import Order

    order = Order(len(table), 4, 10, seed=0)
    losses = []
    for step in steps:
        losses.append(bench.accumulate(bench.lane, table, order.step_rows(step), None)["loss"])
        bench.lane.step(0.01)
    return losses


def test_a_run_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    import torch

    from largeforge_ray.train.checkpoint import Progress, load_checkpoint, save_checkpoint

    stage = stage_of("sft", precision="bfloat16")
    table = table_of(model, stage, make_rows("chat", 12), tmp_path / "t.arrow")
    unbroken = bench_of(model, stage)
    losses = take_steps(unbroken, table, range(6))
    assert losses[-1] < losses[0]

    broken = bench_of(model, stage)
    take_steps(broken, table, range(3))
    save_checkpoint(tmp_path, broken, broken.lane, Progress(step=3, losses=[[3, 1.0]]))
    resumed = bench_of(model, stage)
    progress = load_checkpoint(tmp_path, resumed.lane)
    assert (progress.step, progress.losses) == (3, [[3, 1.0]])
    assert take_steps(resumed, table, range(3, 6)) == losses[3:]
    assert torch.equal(resumed.lane.flat, unbroken.lane.flat)


def test_the_files_of_an_adapter_load_in_peft_and_say_the_same(model: Path, tmp_path: Path) -> None:
    import torch
    import transformers
    from peft import PeftModel

    from largeforge_ray.train.checkpoint import Progress, save_checkpoint

    stage = stage_of("sft", lora={"rank": 4, "alpha": 8, "targets": "attention"})
    bench = bench_of(model, stage)
    save_checkpoint(tmp_path, bench, bench.lane, Progress())
    product = tmp_path / "product"
    config = json.loads((product / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    loaded = PeftModel.from_pretrained(base, product)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        ours = bench.model(input_ids=ids, use_cache=False).logits
        theirs = loaded(input_ids=ids, use_cache=False).logits
        with loaded.disable_adapter():
            plain = loaded(input_ids=ids, use_cache=False).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(plain, theirs, atol=1e-2)


def test_trained_weights_are_kept_in_float32_while_the_model_computes_in_bfloat16(model: Path) -> None:
    import torch

    bench = bench_of(model, stage_of("sft", precision="bfloat16"))
    assert {p.dtype for p in bench.model.parameters()} == {torch.bfloat16}
    assert bench.lane.flat.dtype == torch.float32
    assert sum(p.numel() for p in bench.lane.parameters.values()) == bench.lane.size


def test_the_reference_is_the_base_and_no_second_model(model: Path, tmp_path: Path) -> None:
    """One copy of the base: parameters of base and adapter, counted by their storages."""
    stage = stage_of("dpo")
    table = table_of(model, stage, make_rows("preference", 4), tmp_path / "t.arrow")
    bench = bench_of(model, stage)
    bench.accumulate(bench.lane, table, range(4), None)
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in bench.model.parameters()
    }
    base = sum(p.numel() for n, p in bench.model.named_parameters() if "lora" not in n) * 4
    adapter = bench.lane.size * 4
    assert sum(storages.values()) == base + adapter


def test_rows_longer_than_the_limit_are_counted_and_rows_without_an_answer_named(
    model: Path, tmp_path: Path
) -> None:
    from largeforge_ray.train.tokens import TokenSpec, encode_rows

    rows = make_rows("chat", 6)
    rows[2]["messages"][1]["content"] = "stool " * 100
    batch, left_out = encode_rows(rows, 10, TokenSpec(str(model), stage_of("sft").algorithm, 100))
    assert (left_out, batch.column("row").to_pylist()) == ([12], [10, 11, 13, 14, 15])
    rows[4]["messages"] = rows[4]["messages"][:1]
    with pytest.raises(DataError, match=r"row 14 \(id 4\): a chat without an assistant turn teaches nothing"):
        encode_rows(rows, 10, TokenSpec(str(model), stage_of("sft").algorithm, 100))


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (["attention"], ["k_proj", "o_proj", "q_proj", "v_proj"]),
        (["attention", "mlp"], ["down_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        (["all-linear"], ["down_proj", "k_proj", "o_proj", "odd", "q_proj", "up_proj", "v_proj"]),
        (["odd", "q_proj"], ["odd", "q_proj"]),
    ],
)
def test_targets_are_layers_or_groups_of_them(targets: list[str], chosen: list[str]) -> None:
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "odd", "lm_head"]
    assert choose_targets(targets, linear) == chosen


@pytest.mark.parametrize("target", ["q_prj", "lm_head", "mlp"])
def test_a_target_that_matches_nothing_is_refused(target: str) -> None:
    with pytest.raises(
        ModelError, match=f"'{target}' matches no linear layer; the model has: k_proj, q_proj"
    ):
        choose_targets(["q_proj", target], ["q_proj", "k_proj", "lm_head"])


def test_a_template_that_rewrites_earlier_turns_is_replaced_for_training(tmp_path: Path) -> None:
    """Qwen3's own drops the reasoning of every turn but the last."""
    import importlib.util

    from largeforge_ray.data import render_chat
    from largeforge_ray.train.template import use_training_template

    folder = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
    tokenizer = tokenizer_with((folder / "qwen3.jinja").read_text())
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "second"},
    ]
    with pytest.raises(DataError, match="renders earlier turns differently"):
        render_chat(tokenizer, chat, max_tokens=1000)
    assert use_training_template(tokenizer)
    made = render_chat(tokenizer, chat, max_tokens=1000)
    learned = tokenizer.decode(
        [i for i, x in zip(made["input_ids"], made["labels"], strict=True) if x != -100]
    )
    assert "first" in learned
    assert "second" in learned
    assert "one" not in learned
    plain = tokenizer_with(CHATML)
    assert not use_training_template(plain)
    assert plain.chat_template == CHATML


def test_a_base_in_nf4_is_a_quarter_of_the_bytes_and_learns_after_it_was_measured(
    model: Path, tmp_path: Path
) -> None:
    """bitsandbytes lays weights out for inference in evaluation mode, and gradients after that are wrong."""
    from bitsandbytes.nn import Linear4bit

    losses = {}
    for quantize in (None, "nf4"):
        stage = stage_of("sft", lora={"rank": 4, "alpha": 8, "quantize": quantize}, precision="bfloat16")
        table = table_of(model, stage, make_rows("chat", 12), tmp_path / "t.arrow")
        bench = bench_of(model, stage)
        bench.model.eval()
        bench.accumulate(bench.lane, table, range(4), None, learn=False)
        bench.model.train()
        losses[quantize] = take_steps(bench, table, range(8))
    layers = [m for m in bench.model.modules() if isinstance(m, Linear4bit)]
    assert len(layers) == 2 * 7
    assert all(
        m.weight.numel() * m.weight.element_size() * 4 == m.in_features * m.out_features * 2 for m in layers
    )
    assert all(m.weight.quant_state.nested and m.weight.quant_type == "nf4" for m in layers)
    assert losses["nf4"][-1] < losses["nf4"][0]
    assert losses["nf4"] == pytest.approx(losses[None], rel=0.05)

"""Stages that make models: a merged one, and students that are trained in place of the base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from largeforge_ray.data.rows import HIDDEN, read_rows
from largeforge_ray.store import Store, open_store
from tests.local_ray.conftest import Done, largeforge
from tests.unit._tiny import make_rows, tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Done]:
    """One run of a manifest that makes them, by the command a user types, with a model of two layers."""
    folder: Path = tmp_path_factory.mktemp("models")
    tiny_model(folder, head_dim=32)
    rows = [{"messages": row["messages"]} for row in make_rows("chat", 24)]
    (folder / "chats.json").write_text(json.dumps(rows))
    train = {"kind": "train", "data": "chats", "precision": "float32", "learning_rate": 0.01, "probe": False}
    manifest = {
        "name": "models",
        "model": {"source": "tiny", "max_model_len": 512},
        "stages": [
            {"name": "chats", "kind": "dataset", "source": "chats.json"},
            train | {"name": "tuned"},
            {"name": "merged", "kind": "merge", "adapter": "tuned"},
            {"name": "small", "kind": "student", "layers": [1]},
            train | {"name": "taught", "model": "small", "lora": None},
            {
                "name": "said",
                "kind": "teach",
                "prompts": "chats",
                "samples": 2,
                "keep": "all",
                "hidden": [0, 1],
                "split": {"test": 0.3},
                "teacher": {"temperature": 1.0, "max_tokens": 24},
            },
            train
            | {
                "name": "alike",
                "model": "small",
                "lora": None,
                "data": "said",
                "algorithm": "features",
                "keep": "best",
            },
        ],
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(manifest))
    done = largeforge("run", "m.yaml", cwd=folder, timeout=300)
    assert done.code == 0, done.out + done.err
    return open_store(folder / "forge"), done


def test_a_merged_model_loads_and_is_the_adapter_s(made: tuple[Store, Done]) -> None:
    import transformers

    store, done = made
    assert "largest difference in logits from base and adapter" in done.out
    merged = store.get("merged")
    logits = merged.metrics["logits"]
    assert 0 < logits["merged"] < logits["from_base"]
    assert merged.parents[0] == store.get("tuned").key
    model = transformers.AutoModelForCausalLM.from_pretrained(store.fetch(merged))
    assert type(model).__name__ == "LlamaForCausalLM"


def test_a_student_is_trained_in_place_of_the_base(made: tuple[Store, Done]) -> None:
    import transformers

    store, done = made
    assert "1 of the base's 2 layers: 1" in done.out
    base, small, taught = (store.get(name) for name in ("base", "small", "taught"))
    assert (small.kind, small.parents, taught.parents[1]) == ("model", (base.key,), small.key)
    model = transformers.AutoModelForCausalLM.from_pretrained(store.fetch(small))
    assert model.config.num_hidden_layers == 1
    assert taught.metrics["trainable_parameters"] == model.num_parameters()
    held_out = taught.metrics["held_out"]
    assert held_out["after"]["loss"] < held_out["before"]["loss"]
    trained = store.fetch(taught)
    assert transformers.AutoModelForCausalLM.from_pretrained(trained).config.num_hidden_layers == 1
    assert transformers.AutoTokenizer.from_pretrained(trained).chat_template
    assert any(small.key in one.parents for one in store.artifacts() if one.kind == "tokens")


def test_a_student_becomes_like_its_teacher_inside(made: tuple[Store, Done]) -> None:
    import transformers

    store, done = made
    assert "hidden states of 2 layers x 32 x 2 bytes: 128 bytes a token" in done.out
    said, alike = store.get("said"), store.get("alike")
    assert said.metrics["hidden"] == {"layers": [0, 1], "of": 2, "width": 32}
    rows = list(read_rows(store.fetch(said), "test", numbers=("token_ids", HIDDEN)))
    assert rows
    assert all(len(row[HIDDEN]) == 64 * len(row["token_ids"]) for row in rows)
    held_out = alike.metrics["held_out"]
    assert held_out["after"]["features"] < held_out["before"]["features"]
    trained = transformers.AutoModelForCausalLM.from_pretrained(store.fetch(alike))
    assert trained.num_parameters() == alike.metrics["trainable_parameters"] - 2 * 32 * 32

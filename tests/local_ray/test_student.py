"""A student of one layer, trained by the command a user types, with a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from largeforge_ray.store import open_store
from tests.local_ray.conftest import largeforge
from tests.unit._tiny import make_rows, tiny_model


def test_a_student_is_trained_in_place_of_the_base(tmp_path: Path) -> None:
    import transformers

    tiny_model(tmp_path)
    rows = [{"messages": row["messages"]} for row in make_rows("chat", 24)]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    train = {"kind": "train", "data": "chats", "lora": None, "precision": "float32", "learning_rate": 0.01}
    manifest = {
        "name": "student",
        "model": {"source": "tiny", "max_model_len": 512},
        "stages": [
            {"name": "chats", "kind": "dataset", "source": "chats.json"},
            {"name": "small", "kind": "student", "layers": [1]},
            train | {"name": "taught", "model": "small"},
        ],
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    done = largeforge("run", "m.yaml", cwd=tmp_path, timeout=240)
    assert done.code == 0, done.out + done.err
    assert "1 of the base's 2 layers: 1" in done.out
    store = open_store(tmp_path / "forge")
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
    tokens = next(one for one in store.artifacts() if one.kind == "tokens")
    assert small.key in tokens.parents
    again = largeforge("run", "m.yaml", cwd=tmp_path, timeout=120)
    assert again.code == 0
    assert store.get("taught").created == taught.created

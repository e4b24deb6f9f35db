"""Chats to an adapter to a merged model, by the command a user types, with a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from largeforge_ray.store import open_store
from tests.local_ray.conftest import largeforge
from tests.unit._tiny import make_rows, tiny_model


def test_a_manifest_that_merges_leaves_a_model_that_loads(tmp_path: Path) -> None:
    import transformers

    tiny_model(tmp_path)
    rows = [{"messages": row["messages"]} for row in make_rows("chat", 24)]
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    train = {"name": "tuned", "kind": "train", "data": "chats", "precision": "float32", "learning_rate": 0.01}
    manifest = {
        "name": "merge",
        "model": {"source": "tiny", "max_model_len": 512},
        "stages": [
            {"name": "chats", "kind": "dataset", "source": "chats.json"},
            train | {"probe": False},
            {"name": "merged", "kind": "merge", "adapter": "tuned"},
        ],
    }
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
    done = largeforge("run", "m.yaml", cwd=tmp_path, timeout=240)
    assert done.code == 0, done.out + done.err
    assert "largest difference in logits from base and adapter" in done.out
    store = open_store(tmp_path / "forge")
    made = store.get("merged")
    logits = made.metrics["logits"]
    assert 0 < logits["merged"] < logits["from_base"]
    assert made.parents[0] == store.get("tuned").key
    folder = store.fetch(made)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(folder)).__name__ == "LlamaForCausalLM"
    again = largeforge("run", "m.yaml", cwd=tmp_path, timeout=120)
    assert again.code == 0
    assert store.get("merged").created == made.created

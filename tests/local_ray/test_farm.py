"""The farm through Ray Data with a teacher over HTTP: all that it makes, and each row once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from largeforge_ray.data import read_rows
from largeforge_ray.store import Artifact, Store, open_store
from largeforge_ray.teach import read_teacher_rows
from tests.local_ray._chaos import attempt, strike
from tests.local_ray.conftest import ENVIRONMENT, ROOT
from tests.unit._endpoint import Asked, Reply, ScriptedServer, completion, refusal, servers
from tests.unit._tiny import tiny_model

PROMPTS = 24


class Teacher(ScriptedServer):
    """Adds two numbers, wrongly for every third seed; grades, criticises and lists when it is asked to."""

    def reply(self, asked: Asked) -> Reply:
        super().reply(asked)
        if asked.prompt.startswith("What is item 5:"):
            return Reply(status=400, body=refusal("this prompt is refused"))
        return Reply(body=completion(self.answer(asked)))

    def answer(self, asked: Asked) -> str:
        prompt, seed = asked.prompt, asked.payload["seed"] or 0
        if prompt.startswith("Grade"):
            return f"Fine. Grade: {2 if 'wrong' in prompt else 9}"
        if "Only criticise" in prompt:
            return "It could be clearer."
        if "whole revised answer" in prompt:
            return "A clearer answer."
        if "new tasks" in prompt:
            return "1. Name a river.\n2. What is item 1: 1 + 1?\n3. Name a river!"
        a, b = map(int, re.findall(r"(\d+) \+ (\d+)", prompt)[-1])
        said = f"{a + b}" if seed % 3 else f"{a + b + 1}, wrong"
        told = asked.payload["messages"][0]["content"]
        return f"{a} and {b} make it.\nAnswer: {said}" if "step by step" in told else said


def write_manifest(folder: Path, url: str, *stages: dict[str, Any], **teacher: Any) -> Path:
    rows = [
        {"prompt": f"What is item {i}: {i} + {i % 7}?", "answer": i + i % 7, "check": "number"}
        for i in range(PROMPTS)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tiny_model(folder)
    shared = {
        "kind": "teach",
        "prompts": "prompts",
        "samples": 4,
        "teacher": {"model": {"url": url, "model": "big"} | teacher, "max_tokens": 64},
    }
    manifest = {
        "name": "farm",
        "model": {"source": str(folder / "tiny"), "max_model_len": 512},
        "stages": [
            {"name": "prompts", "kind": "dataset", "source": "prompts.jsonl", "split": {"test": 0.0}},
            *(shared | stage for stage in stages),
        ],
    }
    path = folder / "m.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def teacher() -> Iterator[Teacher]:
    with servers() as serve:
        yield serve(kind=Teacher)


@pytest.fixture(scope="module")
def made(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """One run that makes everything."""
    folder = tmp_path_factory.mktemp("farm")
    price = {"per_1k_prompt": 1.0, "per_1k_completion": 2.0}
    manifest = write_manifest(
        folder,
        teacher.url,
        {"name": "answers", "filters": [{"name": "length", "max_words": 1}]},
        {"name": "rationales", "make": "rationales"},
        {"name": "pairs", "make": {"name": "preferences", "by": "judge"}},
        {
            "name": "revisions",
            "make": {"name": "revisions", "pairs": True},
            "keep": "all",
            "split": {"test": 0.3},
        },
        {"name": "others", "make": "prompts", "samples": 1, "max_failed": 0.0},
        price=price,
    )
    run = attempt(folder, manifest)
    assert run.finish() == 0, run.log.read_text()
    return open_store(run.store), run.log.read_text()


def rows_of(store: Store, name: str) -> tuple[Artifact, list[dict[str, Any]]]:
    artifact = store.get(name)
    return artifact, list(read_rows(store.fetch(artifact), "train"))


def test_every_answer_is_kept_dropped_or_failed_with_its_reason(made: tuple[Store, str]) -> None:
    store, console = made
    artifact, rows = rows_of(store, "answers")
    taught = list(read_teacher_rows(store.fetch(artifact)))
    assert len({r["row_key"] for r in taught}) == len(taught) == 4 * PROMPTS
    facts = artifact.metrics
    assert facts["kept"] + facts["dropped"] + facts["failed"] == 4 * PROMPTS
    assert facts["failed"] == 4
    assert facts["reasons"]["number: wrong number"] == facts["dropped"]
    assert all(r["messages"][-1]["content"].isdigit() for r in rows)
    dead = list(read_teacher_rows(store.fetch(artifact), "dead"))
    assert ["item 5:" in r["messages"][0]["content"] for r in dead] == [True] * 4
    assert "this prompt is refused" in dead[0]["error"]
    assert facts["usd"] == pytest.approx((4 * PROMPTS - 4) * (12 + 2 * 5) / 1000)
    assert "Traceback" not in console
    assert "usd" in console


def test_rationales_pairs_and_revisions_are_told_apart(made: tuple[Store, str]) -> None:
    store, _ = made
    artifact, rows = rows_of(store, "rationales")
    assert artifact.metrics["form"] == "rationale"
    assert all(r["rationale"].endswith("make it.") for r in rows)
    artifact, rows = rows_of(store, "pairs")
    assert artifact.metrics["form"] == "preference"
    assert rows
    assert all("wrong" in r["rejected"][0]["content"] for r in rows)
    assert not any("wrong" in r["chosen"][0]["content"] for r in rows)
    artifact, rows = rows_of(store, "revisions")
    assert {r["chosen"][0]["content"] for r in rows} == {"A clearer answer."}
    held_out = list(read_rows(store.fetch(artifact), "test"))
    assert artifact.metrics["rows"] == len(rows) + len(held_out)
    assert 0.1 < len(held_out) / artifact.metrics["rows"] < 0.5
    assert not {r["messages"][0]["content"] for r in rows} & {r["messages"][0]["content"] for r in held_out}
    taught = read_teacher_rows(store.fetch(artifact))
    assert {len(r["turns"]) for r in taught if r["error"] is None} == {2}


def test_new_prompts_are_near_neither_given_ones_nor_each_other(made: tuple[Store, str]) -> None:
    artifact, rows = rows_of(made[0], "others")
    assert [r["messages"][-1]["content"] for r in rows] == ["Name a river."]
    assert artifact.metrics["form"] == "prompt"
    assert artifact.metrics["near_duplicates"] == 3 * PROMPTS - 1


def test_a_killed_farm_asks_for_no_finished_row_again(tmp_path: Path) -> None:
    with servers() as serve:
        teacher = serve(kind=Teacher, slow_s=0.1)
        stage = {"name": "answers", "samples": 24, "keep": "all"}
        manifest = write_manifest(tmp_path, teacher.url, stage, concurrency=8)
        run = attempt(tmp_path, manifest)
        run.wait_for(lambda e: e["stage"] == "answers" and e["numbers"].get("done", 0) >= 200)
        strike(run, "driver")
        again = attempt(tmp_path, manifest)
        assert again.finish() == 0, again.log.read_text()
        asked = Counter(
            (a.prompt, a.payload["seed"]) for a in teacher.asked if not a.prompt.startswith("What is item 5:")
        )
    store = open_store(again.store)
    taught = list(read_teacher_rows(store.fetch(store.get("answers"))))
    assert len({r["row_key"] for r in taught}) == len(taught) == 24 * PROMPTS
    repeated = sum(n - 1 for n in asked.values())
    print(f"{repeated} of {len(taught)} rows asked for again: {repeated / len(taught):.3f}")
    assert repeated <= 0.1 * len(taught), "what was under way, and no more"
    assert "rows were already in the journal" in again.log.read_text()


def test_too_many_failures_end_the_stage_with_their_reason(teacher: Teacher, tmp_path: Path) -> None:
    stage = {"name": "answers", "max_failed": 0.01}
    run = attempt(tmp_path, write_manifest(tmp_path, teacher.url, stage))
    assert run.finish() == 1
    said = run.log.read_text().splitlines()[-1]
    assert "may: " in said
    assert "this prompt is refused" in said
    assert "raise max_failed" in said


@pytest.mark.slow
def test_a_spend_cap_ends_the_stage_and_keeps_what_was_paid_for(teacher: Teacher, tmp_path: Path) -> None:
    stage = {"name": "answers"}
    price = {"per_1k_prompt": 1.0, "per_1k_completion": 2.0}
    manifest = write_manifest(tmp_path, teacher.url, stage, price=price, max_usd=1.0)
    run = attempt(tmp_path, manifest)
    assert run.finish() == 1
    console = run.log.read_text()
    assert "max_usd" in console.splitlines()[-1]
    assert "Traceback" not in console
    run = attempt(tmp_path, write_manifest(tmp_path, teacher.url, stage, price=price, max_usd=50.0))
    assert run.finish() == 0, run.log.read_text()
    assert "rows were already in the journal" in run.log.read_text()


def test_the_farm_from_python_answers_without_a_model_of_its_own(teacher: Teacher, tmp_path: Path) -> None:
    script = tmp_path / "farm.py"
    script.write_text(
        f"""\
from train_jobs import SyntheticDataGenerator

maker = SyntheticDataGenerator({{"url": "{teacher.url}", "model": "big"}}, store="forge", max_tokens=64)
prompts = [{{"prompt": f"What is item {{i}}: {{i}} + 1?", "answer": i + 1, "check": "number"}}
           for i in (1, 2)]
data = maker.generate_sft_data(prompts, num_samples=3)
print("rows", [row["messages"][1]["content"] for row in data.rows()])
print("taught", len(list(data.teacher_rows())), data.metrics["kept"])
again = maker.generate_sft_data(prompts, num_samples=3)
print("again", again.key == data.key)
pairs = maker.generate_preference_data(prompts)
print("pairs", [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in pairs.rows()])
"""
    )
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
    assert lines["rows"] == "['2', '3']"
    assert lines["taught"].startswith("6 ")
    assert lines["again"] == "True"
    # With the seeds that follow from these prompts, all four answers to the second one are right.
    assert lines["pairs"] == "[('2', '3, wrong')]"
    assert "  base " not in run.stdout, "no model is loaded where an endpoint answers"

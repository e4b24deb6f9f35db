"""The whole loop with the real model, engine and trainer: what a run leaves, what a second one does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from largeforge_ray.evaluate import read_outcomes
from largeforge_ray.store import open_store
from largeforge_ray.teach import read_teacher_rows
from tests.local_ray.conftest import Forge, metrics

pytestmark = pytest.mark.timeout(600)
STAGES = ("base", "prompts", "rows", "orders", "outcomes", "live")


def test_every_stage_leaves_a_whole_artifact(forge: Forge) -> None:
    store = open_store(forge.store)
    for name in STAGES:
        store.fetch(store.get(name))  # compares every file with its record
    assert store.list("journal") == []


def test_every_answer_of_the_teacher_is_accounted_for(forge: Forge) -> None:
    import pyarrow.parquet as pq

    store = open_store(forge.store)
    facts = metrics(forge, "rows")
    assert facts["kept"] + facts["dropped"] + facts["failed"] == 2 * facts["prompts"]
    assert sum(facts["reasons"].values()) == facts["dropped"] + facts["failed"]
    rows = list(read_teacher_rows(store.fetch(store.get("rows"))))
    assert len({row["row_key"] for row in rows}) == len(rows) == 2 * facts["prompts"]
    held_out = pq.read_table(store.fetch(store.get("prompts")) / "test.parquet")["item_hash"].to_pylist()
    assert not {row["item_hash"] for row in rows} & set(held_out)


def test_a_prompt_longer_than_the_context_fails_alone_and_says_so(forge: Forge) -> None:
    facts = metrics(forge, "rows")
    assert facts["failed"] == 2  # one row, two samples
    reason = next(reason for reason in facts["reasons"] if reason.startswith("failed"))
    assert re.search(r"prompt of \d+ tokens exceeds the context of 1024", reason)


@pytest.mark.slow
def test_a_teacher_that_is_never_right_ends_the_run_with_its_reasons(forge: Forge) -> None:
    rows = [{"prompt": f"Say {i}.", "answer": f"not {i}", "check": "exact"} for i in range(12)]
    (forge.folder / "hopeless.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    manifest = yaml.safe_load(forge.manifest.read_text())
    prompts, teach = manifest["stages"][:2]
    prompts |= {"name": "riddles", "source": "hopeless.jsonl"}
    teach |= {"name": "guesses", "prompts": "riddles.train"}
    manifest["stages"] = [prompts, teach]
    path = forge.folder / "hopeless.yaml"
    path.write_text(yaml.safe_dump(manifest))
    run = forge.command("run", str(path))
    assert run.code == 1
    assert "nothing could be made of" in run.err
    assert "exact: differs from the answer" in run.err
    assert "Traceback" not in run.err + run.out


def test_the_adapter_learned_what_the_base_model_cannot(forge: Forge) -> None:
    facts = metrics(forge, "outcomes")
    assert facts["gains"]["orders"]["low"] > 0.0
    assert facts["candidates"]["base"]["errors"] == facts["candidates"]["orders"]["errors"] == 0
    store = open_store(forge.store)
    sure = [row["confidence"] for row in read_outcomes(store.fetch(store.get("outcomes")))]
    assert all(0.0 < confidence <= 1.0 for confidence in sure)
    losses = [loss for _, loss in metrics(forge, "orders")["losses"]]
    assert losses[-1] < losses[0] / 2


def test_the_adapter_carries_no_path_of_this_machine(forge: Forge) -> None:
    store = open_store(forge.store)
    settings = json.loads((store.fetch(store.get("orders")) / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] is None
    assert settings["r"] == 8


def test_the_adapter_in_the_engine_is_the_one_that_was_trained(forge: Forge) -> None:
    for name in ("orders", "live"):
        probe = metrics(forge, name)["probe"]
        assert probe["sequences"] == 4
        assert probe["effect"] > 2 * probe["error"]
    said = r"probe: vLLM matches PEFT within 0\.\d{3} a token, the adapter moves \d\.\d\d"
    assert len(re.findall(said, forge.run.out)) == 2


def test_the_run_says_how_far_it_is_and_nothing_else(forge: Forge) -> None:
    for name in STAGES:
        assert re.search(rf"^  {name} +done", forge.run.out, re.MULTILINE)
    assert "dashboard: http://127.0.0.1:" in forge.run.out
    noise = re.compile(r"WARNING|ERROR|INFO|Traceback|it/s|\(raylet\)|SIGTERM|nanny|deprecat", re.IGNORECASE)
    assert [line for line in (forge.run.out + forge.run.err).splitlines() if noise.search(line)] == []


def test_a_second_run_does_nothing_in_under_five_seconds(forge: Forge) -> None:
    again = forge.command("run", str(forge.manifest))
    assert again.code == 0
    assert "nothing to do: every stage was cached" in again.out
    assert "Ray" not in again.out
    assert again.seconds < 5.0


def test_a_changed_stage_is_planned_again_with_what_depends_on_it(forge: Forge) -> None:
    manifest = yaml.safe_load(forge.manifest.read_text())
    next(s for s in manifest["stages"] if s["name"] == "outcomes")["max_tokens"] = 41
    changed = forge.folder / "changed.yaml"
    changed.write_text(yaml.safe_dump(manifest))
    plan = forge.command("plan", str(changed))
    states = dict(re.findall(r"^(\w+) .*?(cached|to run)", plan.out, re.MULTILINE))
    assert [name for name in STAGES if states[name] == "to run"] == ["outcomes", "live"]


def test_lineage_leads_from_the_expert_to_the_rows(forge: Forge) -> None:
    tree = forge.command("lineage", "orders").out
    for name in ("orders", "rows", "prompts", "base"):
        assert open_store(forge.store).get(name).key[:16] in tree


def test_the_report_stands_alone_and_shows_the_gain(forge: Forge) -> None:
    path = re.search(r"report: (\S+)", forge.run.out)
    assert path
    page = Path(path[1]).read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']?https?://", page)
    gain = metrics(forge, "outcomes")["gains"]["orders"]["gain"]
    assert f"{gain:+.3f}" in page or f"{gain:.3f}" in page or f"{100 * gain:.1f}" in page

"""Published tasks are asked exactly as lm-eval asks them, and malformed documents never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.config.tasks import LIBRARY as NAMES
from largeforge_ray.config.tasks import LibraryTask
from largeforge_ray.errors import ConfigError, DataError
from largeforge_ray.evaluate import harness
from largeforge_ray.evaluate.tasks import LIBRARY, build, spread
from tests.unit._eval_docs import (
    ARC,
    GSM8K,
    HELLASWAG,
    MMLU,
    SOURCES,
    hub_arc,
    index_of,
    items_of,
    jsonl,
    lm_eval_task,
    write_documents,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("documents")
    write_documents(made)
    return made


def requests(task: Any) -> list[tuple[Any, ...]]:
    task.build_all_requests()
    return [instance.arguments for instance in task.instances]


def asked(items: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["context"], choice) for each in items for choice in each["choices"]]


def test_every_task_of_the_schema_is_there() -> None:
    assert tuple(LIBRARY) == NAMES == tuple(SOURCES)


@pytest.mark.parametrize("shots", [0, 3])
def test_mmlu_is_asked_as_by_lm_eval(folder: Path, shots: int) -> None:
    items = items_of("mmlu", folder, num_fewshot=shots)
    own = [row for row in MMLU if row["subject"] == "anatomy"]
    dev = [row | {"question": f"dev {row['question']}"} for row in own]
    task = lm_eval_task("mmlu", {"test": own, "dev": dev}, shots)
    assert asked([i for i in items if i["slice"] == "anatomy"]) == requests(task)
    assert [i["item_id"] for i in items[5:7]] == ["mmlu/anatomy/5", "mmlu/virology/0"]
    assert [i["answer"] for i in items] == [row["answer"] for row in MMLU]
    assert items[0]["context"].startswith(
        "The following are multiple choice questions (with answers) about anatomy"
    )
    assert items[0]["context"].count("dev  What") == shots


@pytest.mark.parametrize("shots", [0, 3])
def test_arc_is_asked_as_by_lm_eval(folder: Path, shots: int) -> None:
    expected = requests(lm_eval_task("arc_easy", {"test": hub_arc(), "train": hub_arc()}, shots))
    for name in ("arc_easy", "arc_challenge"):
        items = items_of(name, folder, num_fewshot=shots)
        assert asked(items) == expected
        assert [i["answer"] for i in items] == [3, 1, 3, 1, 3]


def test_arc_is_read_in_each_of_its_forms(folder: Path, tmp_path: Path) -> None:
    published = [i["item_hash"] for i in items_of("arc_easy", folder)]
    hub = jsonl(tmp_path / "hub.jsonl", hub_arc())
    assert [
        i["item_hash"] for i in build(LibraryTask(name="arc_easy", source=str(hub)), tmp_path).items
    ] == published
    placed = [
        {"question": row["question"], "choices": row["choices"]["text"], "answer": 1 if i % 2 else 3}
        for i, row in enumerate(hub_arc())
    ]
    file = jsonl(tmp_path / "placed.jsonl", placed)
    assert [
        i["item_hash"] for i in build(LibraryTask(name="arc_easy", source=str(file)), tmp_path).items
    ] == published


def test_hellaswag_is_asked_as_by_lm_eval(folder: Path) -> None:
    items = items_of("hellaswag", folder)
    docs = [row | {"label": str(row["label"])} for row in HELLASWAG]
    assert asked(items) == requests(lm_eval_task("hellaswag", {"validation": docs}))
    assert [i["answer"] for i in items] == [0, 1, 2, 3]


@pytest.mark.parametrize("part", ["mc1", "mc2"])
def test_truthfulqa_is_asked_as_by_lm_eval(folder: Path, part: str) -> None:
    true = [
        ["Because of how light penetrates, mostly.", "It is an illusion.", "Light."],
        ["Not always.", "I have no comment."],
    ]
    false = [["The blood is blue.", "There is no oxygen."], ["Yes.", "Always."]]
    docs = [
        {
            "question": question,
            "mc1_targets": {"choices": [t[0], *f], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": [*t, *f], "labels": [1] * len(t) + [0, 0]},
        }
        for question, t, f in zip(
            ("Why do veins appear blue?", "Does the early bird\ncatch the worm?"), true, false, strict=True
        )
    ]
    items = items_of(f"truthfulqa_{part}", folder)
    assert asked(items) == requests(lm_eval_task(f"truthfulqa_{part}", {"validation": docs}))
    assert [i["answer"] for i in items] == ([0, 0] if part == "mc1" else [[0, 1, 2], [0, 1]])
    assert [i["slice"] for i in items] == ["Misconceptions", "Proverbs"]


def test_gsm8k_is_asked_as_by_lm_eval_with_its_five_examples(folder: Path) -> None:
    items = items_of("gsm8k", folder)
    task = lm_eval_task("gsm8k", {"test": GSM8K[:2], "train": GSM8K[2:]}, 5)
    expected = requests(task)
    assert [i["context"] for i in items] == [context for context, _ in expected]
    assert items[0]["context"].count("Question:") == 6
    assert [i["stop"] for i in items] == [options["until"] for _, options in expected]
    assert {i["max_tokens"] for i in items} == {256}
    other = items_of("gsm8k", folder, seed=7)
    assert other[0]["context"] != items[0]["context"]
    assert items_of("gsm8k", folder, limit=1) == items[:1]


def test_a_chat_has_the_examples_as_its_turns(folder: Path) -> None:
    first = items_of("gsm8k", folder, num_fewshot=2, chat=True)[0]
    assert first["context"] is None
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"] * 2 + ["user"]
    assert first["messages"][-1]["content"] == f"Question: {GSM8K[0]['question']}\nAnswer:"
    choice = items_of("mmlu", folder, chat=True)[0]
    assert choice["choices"] == ["A", "B", "C", "D"]
    assert [turn["role"] for turn in choice["messages"]] == ["system", "user"]


def test_humaneval_is_asked_as_by_lm_eval_and_judged_by_its_tests(folder: Path) -> None:
    (made,) = items_of("humaneval", folder)
    task = lm_eval_task("humaneval", {"test": [made["doc"]]}, metric_list=None, filter_list=None)
    ((context, options),) = requests(task)
    assert (made["context"], made["stop"], made["max_tokens"]) == (context, options["until"], 1024)
    assert made["answer"] == task.doc_to_target(made["doc"])
    (chat,) = items_of("humaneval", folder, chat=True)
    assert chat["messages"][0]["content"].startswith("Write a solution to the following problem")
    assert chat["stop"] is None


def test_any_task_of_lm_eval_is_read_from_a_folder_of_its_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_index", lambda: index_of("arc"))
    jsonl(tmp_path / "docs/test.jsonl", hub_arc())
    jsonl(tmp_path / "docs/train.jsonl", hub_arc())
    entry = LibraryTask(name="harness:arc_easy", source="docs", num_fewshot=1, group="answerKey")
    built = build(entry, tmp_path)
    assert built.items[0]["item_id"] == "arc_easy/0"
    assert {i["check"] for i in built.items} == {"choice"}
    assert built.items[0]["rules"] == {"metric": "acc", "delimiter": " "}
    assert [i["group"] for i in built.items] == ["D", "2", "D", "2", "D"]
    # Both of its tasks are given the same documents here.
    groups = build(LibraryTask(name="harness:ai2_arc", source="docs", limit=4), tmp_path)
    assert ([i["slice"] for i in groups.items], groups.duplicates) == (["arc_challenge"] * 2, 2)
    written = build(
        LibraryTask(name="harness:arc_challenge_chat", source="docs", num_fewshot=0), tmp_path
    ).items
    assert (written[0]["kind"], written[0]["check"]) == ("generate", "harness")
    assert written[0]["rules"]["metric"] == "exact_match,remove_whitespace"


def test_without_a_source_the_hub_is_asked_and_named_when_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    def unreachable(**_: Any) -> None:
        raise ConnectionError("no network\nmore of it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ConfigError, match="documents of task 'gsm8k' cannot be had from the hub: no network; give"
    ):
        build(LibraryTask(name="gsm8k"), Path())


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(1, 200))
def test_a_limit_is_spread_evenly_over_the_parts(sizes: list[int], limit: int) -> None:
    places = spread(sizes, limit)
    total = sum(sizes)
    assert sum(map(len, places)) == min(limit, total)
    assert all(chosen == sorted(set(chosen)) for chosen in places)
    assert all(0 <= p < size for chosen, size in zip(places, sizes, strict=True) for p in chosen)
    for chosen, size in zip(places, sizes, strict=True):
        assert abs(len(chosen) - min(limit, total) * size / total) < 1
    assert spread([9], 4) == [[0, 1, 2, 3]]


def test_documents_that_ask_the_same_are_asked_once_and_counted(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [*GSM8K[:2], GSM8K[0]])
    built = build(LibraryTask(name="gsm8k", source="test.jsonl", num_fewshot=0), tmp_path)
    assert (len(built.items), built.duplicates) == (2, 1)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mmlu", MMLU[0] | {"answer": 4}, r"test\.jsonl:1: field 'answer': 4 is no place among 4 choices"),
        (
            "mmlu",
            MMLU[0] | {"subject": "anatomie"},
            "'anatomie' is no subject of mmlu; did you mean 'anatomy'",
        ),
        ("mmlu", MMLU[0] | {"choices": ["a", "b"]}, "'choices': has 2 texts and needs at least 4"),
        ("mmlu", {"subject": "anatomy"}, "'choices': is missing; the row has subject"),
        ("arc_easy", ARC[0] | {"answerKey": "E"}, "'E' is none of the labels A, B, C, D"),
        ("arc_easy", {"question": "q", "choices": [{"text": "a"}]}, "'choices': must be texts"),
        ("hellaswag", HELLASWAG[0] | {"label": ""}, "'label': '' is no place among 4 choices"),
        ("truthfulqa_mc1", {"question": "q"}, "'mc1_targets': is missing; give TruthfulQA.csv"),
        ("gsm8k", {"question": "q", "answer": "4"}, "does not end with '#### '"),
        ("gsm8k", {"question": " ", "answer": "#### 4"}, "'question': must be text that is not empty"),
        ("humaneval", {"task_id": "a", "prompt": "b", "test": "c"}, "'entry_point': is missing"),
    ],
)
def test_documents_that_are_malformed_are_named(tmp_path: Path, name: str, row: Any, message: str) -> None:
    jsonl(tmp_path / "test.jsonl", [row])
    with pytest.raises(DataError, match=message):
        build(LibraryTask(name=name, source="test.jsonl", num_fewshot=0), tmp_path)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    def refusal(**entry: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            build(LibraryTask(**entry), tmp_path)
        return str(caught.value)

    assert "does not exist" in refusal(name="gsm8k", source="gone")
    jsonl(tmp_path / "docs/test.jsonl", GSM8K)
    jsonl(tmp_path / "docs/other.jsonl", GSM8K)
    assert (
        "no file of split 'train', which task 'gsm8k' needs; add train.jsonl or set num_fewshot: 0"
        in refusal(name="gsm8k", source="docs")
    )
    assert "has no file of split 'validation'" in refusal(name="hellaswag", source="docs")
    jsonl(tmp_path / "docs/my-test.jsonl", GSM8K)
    assert "several files of split 'test': my-test.jsonl, test.jsonl" in refusal(
        name="gsm8k", source="docs", num_fewshot=0
    )
    (tmp_path / "rows.txt").write_text("x")
    assert "is '.txt'; tasks read .jsonl" in refusal(name="gsm8k", source="rows.txt", num_fewshot=0)

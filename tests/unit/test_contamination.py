"""Items that stand in what was trained on are found, with the place, and others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.data.rows import write_rows
from largeforge_ray.errors import StoreError
from largeforge_ray.evaluate.contamination import Overlap, contaminated, training_texts, with_and_without
from largeforge_ray.store import Artifact, Store, artifact_key, open_store


def asked(name: str, prompt: str, **more: Any) -> dict[str, Any]:
    plain = {"item_hash": name, "messages": [{"role": "user", "content": prompt}], "context": None}
    return plain | {"choices": None, "answer": None, "doc": None, "variant": None} | more


LONG = (
    "a train leaves the northern station at noon and arrives in the harbour town before the last ferry sails"
)


def test_a_shared_run_of_words_marks_an_item_and_says_where() -> None:
    items = [
        asked("a", f"Read this. {LONG}!"),
        asked("b", "Something else entirely, of which nobody has heard yet."),
    ]
    texts = [("rows 1", "nothing here"), ("rows 2", f"Once {LONG.upper()}."), ("rows 3", LONG)]
    assert contaminated(items, iter(texts), n=13) == {
        "a": Overlap("a train leaves the northern station at noon and arrives in the harbour", "rows 2")
    }


def test_a_run_that_is_one_word_too_short_marks_nothing() -> None:
    twelve = " ".join(LONG.split()[:12])
    assert contaminated([asked("a", LONG)], [("x", f"{twelve} nobody")], n=13) == {}
    assert contaminated([asked("a", LONG)], [("x", f"{twelve} nobody")], n=12).keys() == {"a"}


def test_a_short_item_is_compared_as_a_whole_signs_included() -> None:
    items = [asked("plus", "What is 5 + 3?"), asked("minus", "What is 5 - 3?"), asked("one", "Paris")]
    assert contaminated(items, [("x", "what is 5 + 3")]).keys() == {"plus"}
    assert contaminated(items, [("x", "Say: what is 5 + 3? And why?")]) == {}
    assert contaminated(items, [("x", "paris!")]).keys() == {"one"}


def test_a_short_answer_of_many_items_marks_none_and_a_long_one_does() -> None:
    short = asked("short", "Where does the river that crosses Vienna end?", answer="the black sea")
    long = asked("long", "Tell me.", answer={"why": [LONG]})
    assert contaminated([short, long], [("x", "The Black Sea."), ("y", LONG)]).keys() == {"long"}


def test_what_many_items_have_in_common_is_their_task() -> None:
    told = "Extract the order from this message as a JSON object with keys item quantity and colour please"
    items = [asked(str(i), f"{told}:\n\n{' '.join(f'w{i}x{j}' for j in range(20))}") for i in range(11)]
    assert contaminated(items, [("x", told)]) == {}
    assert len(contaminated(items[:10], [("x", told)])) == 10
    own = " ".join(f"w3x{j}" for j in range(14))
    assert contaminated(items, [("x", f"{told} {own}")]).keys() == {"3"}


def test_examples_before_a_question_are_not_the_item() -> None:
    shots = f"Question: {LONG}\nAnswer: yes\n\nQuestion: Is it late?\nAnswer:"
    doc = {"question": "Is it late?", "choices": {"text": ["yes", "no"]}, "answerKey": "A"}
    items = [asked("a", "", messages=None, context=shots, doc=doc)]
    assert contaminated(items, [("x", LONG)]) == {}
    assert contaminated(items, [("x", "Yes")]) == {}
    assert contaminated(items, [("x", "is it late")]).keys() == {"a"}


def test_a_perturbed_item_is_its_origins() -> None:
    assert contaminated([asked("a", LONG, variant="case")], [("x", LONG)]) == {}


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=8).map(" ".join)


@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=5))
def test_it_is_what_comparing_all_runs_says_in_any_order(prompts: list[str], texts: list[str]) -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}

    items = [asked(str(place), prompt) for place, prompt in enumerate(prompts)]
    pairs = [(text, text) for text in texts]
    expected = {str(i) for i, p in enumerate(prompts) if any(runs(p) & runs(t) for t in texts)}
    found = contaminated(items, pairs, n=3)
    assert found.keys() == expected == contaminated(items[::-1], pairs[::-1], n=3).keys()
    for place, overlap in found.items():
        run = tuple(overlap.words.split())
        assert run in runs(prompts[int(place)]) & runs(overlap.source)


# What was trained on.


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "forge")


def publish(store: Store, folder: Path, kind: str, name: str, parents: Any = (), **config: Any) -> Artifact:
    key = artifact_key(kind, config | {"name": name}, parents)
    return store.publish(kind, key, name, parents, config, folder)


def dataset(store: Store, folder: Path, name: str, parents: Any = (), **parts: str) -> Artifact:
    made = folder / name
    made.mkdir()
    for part, text in parts.items():
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": f"re: {text}"}]
        write_rows(made, part, [{"item_id": f"{name}-0", "item_hash": "0" * 64, "messages": messages}])
    return publish(store, made, "dataset", name, parents)


def trained(store: Store, folder: Path, name: str, parents: list[Artifact], **data: str) -> Artifact:
    made = folder / name
    made.mkdir()
    (made / "weights").write_text(name)
    return publish(store, made, "adapter", name, [p.key for p in parents], inputs=data)


def test_training_texts_are_those_of_an_adapters_datasets_and_its_ancestors(
    store: Store, tmp_path: Path
) -> None:
    prompts = dataset(store, tmp_path, "prompts", train="drawn from", test="asked in the evaluation")
    rows = dataset(store, tmp_path, "rows", [prompts.key], train="taught", test="held out")
    pairs = dataset(store, tmp_path, "pairs", train="preferred")
    first = trained(store, tmp_path, "first", [rows], data=f"{rows.key[:16]}.train")
    second = trained(
        store, tmp_path, "second", [pairs, first], data=f"{pairs.key[:16]}.train", model=first.key[:16]
    )
    assert [text for _, text in training_texts(store, first)] == ["taught", "re: taught"]
    assert {text for _, text in training_texts(store, second)} == {
        "taught", "re: taught", "preferred", "re: preferred"
    }  # fmt: skip
    source, _ = next(training_texts(store, first))
    assert source == f"rows {rows.key[:16]}.train, item rows-0"


def test_preference_rows_count_with_both_sides(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    sides = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    asks = [{"role": "user", "content": "asked"}]
    write_rows(
        folder,
        "train",
        [{"item_id": "0", "item_hash": "0" * 64, "messages": asks, "answer": {"a": "b"}} | sides],
    )
    pairs = publish(store, folder, "dataset", "pairs")
    tuned = trained(store, tmp_path, "tuned", [pairs], data=f"{pairs.key[:16]}.train")
    assert [text for _, text in training_texts(store, tuned)] == ["asked", "chosen", "rejected", "b"]


def test_a_removed_dataset_is_no_clean_one(store: Store, tmp_path: Path) -> None:
    made = tmp_path / "tuned"
    made.mkdir()
    (made / "weights").write_text("w")
    tuned = publish(store, made, "adapter", "tuned", ["a" * 64], inputs={"data": f"{'a' * 16}.train"})
    with pytest.raises(StoreError, match=r"artifact a{16} was removed from the store, .*; make it again, or"):
        list(training_texts(store, tuned))


# What it changes.


def test_accuracy_is_told_with_and_without_the_marked_items() -> None:
    def row(expert: str, item: str, quality: float, contaminated: bool | None, **more: Any) -> dict[str, Any]:
        plain = {"task": "mmlu", "variant": None, "expert": expert, "item_hash": item}
        return plain | {"quality": quality, "contaminated": contaminated} | more

    outcomes = [
        row("tuned", "a", 1.0, True), row("tuned", "b", 1.0, False), row("tuned", "b", 0.0, False),
        row("tuned", "c", 0.0, False), row("tuned", "c2", 0.0, False, variant="typos"),
        row("seen", "a", 1.0, True), row("base", "a", 1.0, None),
    ]  # fmt: skip
    assert with_and_without(outcomes) == {
        "mmlu": {
            "seen": {"marked": 1, "accuracy_with": 1.0, "accuracy_without": None},
            "tuned": {"marked": 1, "accuracy_with": 0.5, "accuracy_without": 0.25},
        }
    }
    assert with_and_without([]) == {}

"""Perturbed items: another prompt, the same task, and an answer that is still the true one."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.evaluate.items import item
from largeforge_ray.evaluate.perturb import perturb

QUESTION = "Which of These Metals melts at 29.76 degrees, `call_melt(Metal)` or $T_m = 3$ says Marguerite?"
CHOICES = ["Gallium", "Iron works", "Zinc", "Both A. and B."]
LINES = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", CHOICES, strict=True))
SHOT = "Which Planet is largest?\nA. Jupiter\nB. Mars\nC. Venus\nD. Earth\nAnswer: A\n\n"
NAMES = ("typos", "case", "options", "paraphrase")


def letters(answer: int = 0, **changed: Any) -> dict[str, Any]:
    """As MMLU's items are."""
    fields: dict[str, Any] = {
        "item_id": "mmlu/metals/0",
        "task": "mmlu",
        "slice": "metals",
        "kind": "choice",
        "check": "choice",
        "context": f"About Metals.\n\n{SHOT}{QUESTION}\n{LINES}\nAnswer:",
        "choices": [" A", " B", " C", " D"],
        "answer": answer,
        "rules": {"metric": "acc", "delimiter": " "},
        "doc": {"question": f" {QUESTION}", "choices": CHOICES, "answer": answer},
    }
    return item(**fields | changed)


def texts(**changed: Any) -> dict[str, Any]:
    """As ARC's items are."""
    context = f"Question: {QUESTION}\nAnswer:"
    return letters(**{"context": context, "choices": [f" {text}" for text in CHOICES]} | changed)


def words(**changed: Any) -> dict[str, Any]:
    chat = [{"role": "system", "content": "Speak Plainly."}, {"role": "user", "content": QUESTION}]
    fields: dict[str, Any] = {
        "item_id": "own/3",
        "task": "own",
        "kind": "generate",
        "check": "exact",
        "messages": chat,
        "answer": "Gallium",
        "max_tokens": 8,
    }
    return item(**fields | changed)


def prompt_of(made: dict[str, Any]) -> str:
    return made["context"] or made["messages"][-1]["content"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("original", [letters(), texts(), words()], ids=["letters", "texts", "words"])
def test_a_variant_is_an_item_of_its_own_that_knows_its_origin(original: dict[str, Any], name: str) -> None:
    made = perturb(original, name)
    if made is None:
        assert (name, original["kind"]) == ("options", "generate")
        return
    assert (made["variant"], made["origin"]) == (name, original["item_hash"])
    assert made["item_hash"] != original["item_hash"]
    same = ("item_id", "task", "slice", "kind", "check", "rules", "doc", "stop", "max_tokens")
    assert all(made[field] == original[field] for field in same)
    assert perturb(original, name) == made


@pytest.mark.parametrize("name", ["typos", "case", "paraphrase"])
def test_only_the_question_changes(name: str) -> None:
    original, made = letters(), perturb(letters(), name)
    assert made is not None
    before, after = f"About Metals.\n\n{SHOT}", f"\n{LINES}\nAnswer:"
    assert made["context"].startswith(before)
    assert made["context"].endswith(after)
    assert made["context"] != original["context"]
    assert (made["choices"], made["answer"]) == (original["choices"], original["answer"])
    chat = perturb(words(), name)
    assert chat is not None
    assert chat["messages"][0] == words()["messages"][0]
    for kept in ("29.76", "`call_melt(Metal)`", "$T_m = 3$"):
        assert kept in made["context"]
        assert kept in chat["messages"][1]["content"]


def test_lower_case_and_paraphrase_keep_the_words() -> None:
    lower, other = perturb(texts(), "case"), perturb(texts(), "paraphrase")
    assert lower is not None
    assert other is not None
    assert "which of these metals melts at 29.76 degrees, `call_melt(Metal)`" in lower["context"]
    assert other["context"].endswith(f" {QUESTION}\nAnswer:")


@given(st.lists(st.sampled_from(["quick", "otter", "reads", "seven", "letter"]), min_size=1, max_size=90))
def test_typos_are_in_one_of_twenty_words(said: list[str]) -> None:
    made = perturb(words(messages=[{"role": "user", "content": " ".join(said)}]), "typos")
    assert made is not None
    pairs = zip(said, prompt_of(made).split(" "), strict=True)
    wrong = [(one, other) for one, other in pairs if one != other]
    assert len(wrong) == max(1, round(0.05 * len(said)))
    for one, other in wrong:
        assert (one[0], one[-1]) == (other[0], other[-1])
        assert abs(len(one) - len(other)) <= 1
        assert set(other) <= set(one)


@given(st.integers(0, 3))
def test_other_letters_lead_to_the_same_text(answer: int) -> None:
    made = perturb(letters(answer), "options")
    assert made is not None
    assert made["choices"] == [" A", " B", " C", " D"]
    assert made["context"].startswith(f"About Metals.\n\n{SHOT}{QUESTION}\nA. ")
    shown = dict(re.findall(r"^([A-D])\. (.*)$", made["context"].rpartition(QUESTION)[2], re.MULTILINE))
    assert sorted(shown.values()) == sorted(CHOICES)
    assert shown["ABCD"[made["answer"]]] == CHOICES[answer]
    assert made["answer"] != answer


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
def test_other_places_hold_the_same_true_choices(true: list[int]) -> None:
    original = texts(answer=true)
    made = perturb(original, "options")
    assert made is not None
    assert made["context"] == original["context"]
    assert made["choices"] != original["choices"]
    assert {made["choices"][i] for i in made["answer"]} == {original["choices"][i] for i in true}


SEVERAL_LINES = "A. one\nB. two\nand more\nC. three\nD. four"


@pytest.mark.parametrize(
    ("original", "name"),
    [
        (words(), "options"),
        (letters(check="harness", rules={"config": "x.yaml", "metric": "acc"}), "options"),
        (letters(context=f"{SHOT}{QUESTION}\n{SEVERAL_LINES}\nAnswer:"), "options"),
        (letters(doc=None), "typos"),
        (words(check="code", answer="assert f() == 1"), "paraphrase"),
        (words(messages=[{"role": "user", "content": "12 + 7 = ?"}]), "typos"),
        (words(messages=[{"role": "user", "content": "name it"}]), "case"),
        (words(messages=[{"role": "user", "content": "```\nprint(Letters)\n```"}]), "case"),
    ],
)
def test_what_does_not_apply_makes_no_item(original: dict[str, Any], name: str) -> None:
    assert perturb(original, name) is None

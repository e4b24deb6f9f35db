"""What else is made with a teacher: rationales, pairs, revisions and new prompts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from largeforge_ray.config.teaching import Teacher
from largeforge_ray.data import row_hash
from largeforge_ray.errors import ConfigError
from largeforge_ray.teach import AnswerRecipe, products
from largeforge_ray.teach.expansion import ExpansionRecipe
from largeforge_ray.teach.funnel import Funnel
from largeforge_ray.teach.judging import JudgedRecipe, read_grade
from largeforge_ray.teach.rationale import RationaleRecipe, split_rationale
from largeforge_ray.teach.revision import RevisionRecipe, load_constitution
from largeforge_ray.teach.rows import TeacherRowWriter, read_teacher_rows
from largeforge_ray.types import Generation, Likeliest, Sampling, Verdict

SHARED: dict[str, Any] = {
    "teacher": Teacher(instructions="Be brief."),
    "teacher_key": "k",
    "sampling": Sampling(temperature=0.7, max_tokens=40, seed=3),
    "samples": 2,
}


def item(prompt: str = "What is 2 + 3?", answer: Any = 5, check: str | None = "number") -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    digest = row_hash(messages, answer)
    return {"item_id": "p", "item_hash": digest, "messages": messages, "answer": answer, "check": check}


def said(text: str, reason: str = "stop", error: str | None = None, **more: Any) -> Generation:
    return Generation("r", text, reason, 10, 4, 0.5, error=error, usd=0.25, **more)


def rows(recipe: AnswerRecipe, *conversations: list[Generation], of: Any = None) -> list[dict[str, Any]]:
    work = recipe.work(of or item())
    return [recipe.row(w, made) for w, made in zip(work, conversations, strict=True)]


# Rationales.


def test_reasoning_and_answer_are_told_apart_and_the_answer_is_checked() -> None:
    recipe = RationaleRecipe(**SHARED)
    right, wrong = rows(recipe, [said("Two and 3 make 5.\nAnswer: 5")], [said("It is 5.\nAnswer: 6")])
    assert (right["rationale"], right["text"]) == ("Two and 3 make 5.", "5")
    assert right["verdict"]["kept"]
    assert wrong["verdict"]["reason"] == "wrong number"
    (shown, asked) = recipe.work(item())[0].request.messages
    assert shown["role"] == "system"
    assert shown["content"].startswith("Be brief.")
    assert "'Answer:'" in shown["content"]
    assert asked == item()["messages"][0]


def test_an_answer_without_reasoning_or_without_its_mark_is_dropped() -> None:
    bare, unmarked = rows(RationaleRecipe(**SHARED), [said("Answer: 5")], [said("5")])
    assert bare["verdict"]["reason"] == "no reasoning before the answer"
    assert unmarked["verdict"]["reason"] == "no 'Answer:' in the answer"


@given(st.text(), st.text().filter(lambda t: "Answer:" not in t))
def test_the_last_mark_counts(before: str, after: str) -> None:
    assert split_rationale(f"{before}Answer:{after}", "Answer:") == (before.strip(), after.strip())


def test_a_dataset_of_rationales_keeps_them_beside_their_chats() -> None:
    made = rows(RationaleRecipe(**SHARED), [said("a\nAnswer: 5")], [said("b\nAnswer: 5")])
    (row,) = products.rationales(sorted(made, key=products.in_place), "verified")
    assert row["messages"][-1] == {"role": "assistant", "content": "5"}
    assert row["rationale"] == "a"


# Pairs.


def test_right_answers_are_better_than_wrong_ones() -> None:
    recipe = AnswerRecipe(**SHARED | {"samples": 4})
    made = rows(recipe, [said("5")], [said("6")], [said("7")], [said("", error="lost")])
    (pair,) = products.pairs(sorted(made, key=products.in_place), 3, "check")
    assert pair["messages"] == item()["messages"]
    assert pair["chosen"] == [{"role": "assistant", "content": "5"}]
    assert pair["rejected"][0]["content"] in ("6", "7")
    assert not list(products.pairs(made[1:], 3, "check")), "two wrong answers make no pair"


def test_the_judge_grades_each_answer_in_a_request_of_its_own() -> None:
    recipe = JudgedRecipe(**SHARED)
    work = recipe.work(item())[0]
    asked = recipe.follow(work, [said("five it is")])
    assert asked is not None
    assert "[Question]\nWhat is 2 + 3?" in asked.messages[0]["content"]
    assert "[Answer]\nfive it is" in asked.messages[0]["content"]
    assert asked.sampling.temperature == 0
    assert recipe.follow(work, [said("five it is"), said("Grade: 7")]) is None
    good, odd = rows(recipe, [said("five it is"), said("Fine. Grade: 7")], [said("x"), said("Nice!")])
    assert (good["score"], good["text"], good["turns"]) == (7.0, "five it is", ["Fine. Grade: 7"])
    assert good["verdict"]["kept"], "what is right is the judge's to say"
    assert (good["completion_tokens"], good["usd"]) == (8, 0.5)
    assert odd["filtered"]["reason"] == "no grade from 1 to 10"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Grade: 8", 8),
        ("Clear, but 2 of 3 facts are wrong. Grade: 3/10", 3),
        ("Grade: **9**", 9),
        ("I give it 10", 10),
        ("Grade: 10", 10),
        ("Grade: 0", None),
        ("Grade: 11", None),
        ("100 of 100", None),
        ("Grade: 7.", 7),
        ("Grade: 7.5", None),
        ("no number", None),
    ],
)
def test_a_grade_is_a_whole_number_from_1_to_10(text: str, grade: float | None) -> None:
    assert read_grade(text) == grade


def test_best_meets_worst_and_second_best_second_worst() -> None:
    recipe = AnswerRecipe(**SHARED | {"samples": 5})
    made = rows(recipe, *([said(t)] for t in "abcde"))
    for row, score in zip(made, (3.0, 9.0, 1.0, 5.0, 9.0), strict=True):
        row["score"] = score
    made = sorted(made, key=products.in_place)
    shown = [
        (p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in products.pairs(made, 9, "judge")
    ]
    assert shown == [("b", "c"), ("e", "a")]
    assert len(list(products.pairs(made, 1, "judge"))) == 1


# Revisions.


def test_an_answer_is_criticised_by_a_principle_and_written_anew() -> None:
    principles = tuple(load_constitution(None).principles)
    recipe = RevisionRecipe(**SHARED, principles=principles, rounds=2)
    work = recipe.work(item())[0]
    made = [said("first")]
    roles = []
    while (asked := recipe.follow(work, made)) is not None:
        roles.append([m["role"] for m in asked.messages])
        assert asked == recipe.follow(work, made), "the same request whenever it is asked"
        made.append(said(f"turn {len(made)}"))
    assert [g.text for g in made] == ["first", "turn 1", "turn 2", "turn 3", "turn 4"]
    critique = ["system", "user", "assistant", "user"]
    assert roles == [critique, [*critique, "assistant", "user"]] * 2
    row = recipe.row(work, made)
    assert (row["text"], row["turns"]) == ("turn 4", ["first", "turn 1", "turn 2", "turn 3"])
    row["verdict"] = {"kept": True, "by": "none", "reason": ""}
    (pair,) = products.revised([row], "verified", as_pairs=True)
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("turn 4", "first")
    (chat,) = products.revised([row], "verified", as_pairs=False)
    assert chat["messages"][-1]["content"] == "turn 4"


def test_our_constitution_is_one_and_others_are_refused_with_the_place(tmp_path: Path) -> None:
    assert len(load_constitution(None).principles) >= 5
    path = tmp_path / "c.yaml"
    for text, told in [
        ("principles: []", "principles: list should have at least 1"),
        ("principles:\n- {name: a, critique: b}", r"principles\.0\.revision: field required"),
        ("principles: [", "cannot be read"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=told):
            load_constitution(path)
    with pytest.raises(ConfigError, match=r"nowhere\.yaml' cannot be read"):
        load_constitution(tmp_path / "nowhere.yaml")


# New prompts.


def test_new_prompts_are_read_from_a_list_without_the_one_that_was_cut_off() -> None:
    recipe = ExpansionRecipe(**SHARED, pool=("a?", "b?", "What is 2 + 3?"), beside=3, asked=2)
    shown = recipe.work(item())[0].request.messages[-1]["content"]
    assert "1. What is 2 + 3?\n" in shown
    assert {"2. a?", "3. b?", "2. b?", "3. a?"} & set(shown.splitlines())
    whole, cut = rows(recipe, [said("1. Add 4 and 4.\n2) Name a city.")], [said("1. One?\n2. Tw", "length")])
    assert whole["turns"] == ["Add 4 and 4.", "Name a city."]
    assert cut["turns"] == ["One?"]
    made = list(products.prompts([whole, cut], "verified"))
    assert [r["messages"] for r in made] == [
        [{"role": "user", "content": text}] for text in ("Add 4 and 4.", "Name a city.", "One?")
    ]
    assert len({r["item_hash"] for r in made}) == len({r["item_id"] for r in made[:2]}) + 1 == 3


def test_a_harder_prompt_is_the_whole_answer() -> None:
    recipe = ExpansionRecipe(**SHARED, method="evolve")
    good, cut = rows(recipe, [said("What is 2 + 3 in binary?")], [said("What is", "length")])
    assert good["turns"] == ["What is 2 + 3 in binary?"]
    assert cut["verdict"]["reason"] == "cut off at max_tokens"


# All of them.


def test_a_chat_is_answered_anew() -> None:
    chat = item() | {
        "messages": [*item()["messages"], {"role": "assistant", "content": "old"}],
        "check": None,
    }
    row, _ = rows(AnswerRecipe(**SHARED), [said("new")], [said("newer")], of=chat)
    assert row["messages"] == item()["messages"]
    (made, _) = products.chats(
        [row, *rows(AnswerRecipe(**SHARED), [said("newer")], [said("new")], of=chat)], "all"
    )
    assert [m["role"] for m in made["messages"]] == ["user", "assistant"]


def test_the_funnel_counts_each_row_once_and_says_why() -> None:
    funnel = Funnel("verified")
    made = rows(
        AnswerRecipe(**SHARED | {"samples": 4}),
        [said("5")],
        [said(" 5")],
        [said("6")],
        [said("", error="lost")],
    )
    for row in made:
        funnel.add(row)
    numbers = funnel.numbers()
    assert {k: numbers[k] for k in ("kept", "dropped", "failed", "duplicates")} == {
        "kept": 2,
        "dropped": 1,
        "failed": 1,
        "duplicates": 1,
    }
    assert numbers["reasons"] == {"number: wrong number": 1, "failed: lost": 1}
    assert (numbers["tokens"], numbers["usd"]) == (16, 1.0)


def refuse_sixes(prompt: str, text: str) -> tuple[str, Verdict | None]:
    assert prompt == "What is 2 + 3?"
    return text.replace("x", "y"), Verdict(False, "sixes", "a six") if "6" in text else None


def test_filters_see_prompt_and_answer_and_have_the_last_word() -> None:
    recipe = pickle.loads(pickle.dumps(AnswerRecipe(**SHARED, keep="all", accept=refuse_sixes)))
    six, scrubbed = rows(recipe, [said("6")], [said("x")])
    assert six["filtered"] == {"kept": False, "by": "sixes", "reason": "a six"}
    assert not recipe.numbers(six)["kept"]
    assert scrubbed["text"] == "y"
    assert recipe.numbers(scrubbed) == {
        "failed": False,
        "kept": True,
        "tokens": 4,
        "prompt": 10,
        "cached": 0,
        "usd": 0.25,
    }


def test_a_failed_turn_fails_its_row() -> None:
    recipe = JudgedRecipe(**SHARED)
    row, _ = rows(recipe, [said("five"), said("", error="the engine died")], [said("", error="too long")])
    assert row["error"] == "the engine died"
    assert row["verdict"] is None


def test_signals_go_with_the_answer_they_belong_to() -> None:
    known = Likeliest(
        np.array([[5, 2], [7, 1]], np.int32),
        np.array([[-0.5, -2], [-0.25, -3]], np.float16),
        np.array([-4, -5], np.float16),
    )
    recipe = AnswerRecipe(**SHARED | {"samples": 1}, topk=2)
    assert recipe.work(item())[0].request.topk == 2
    made = rows(recipe, [said("5", token_ids=(5, 9), likeliest=known)])
    (chat,) = products.chats(made, "verified")
    assert chat["token_ids"].tolist() == [5, 9]
    assert chat["topk_ids"].tolist() == [5, 2, 7, 1]
    assert chat["topk_logprobs"].tolist() == [-0.5, -2, -0.25, -3]
    assert chat["tail_logprob"].tolist() == [-4, -5]


def test_rows_are_written_with_the_dead_letter_beside_them(tmp_path: Path) -> None:
    made = rows(AnswerRecipe(**SHARED), [said("5")], [said("", error="prompt of 900 tokens")])
    writer = TeacherRowWriter(tmp_path)
    for row in made:
        writer.add(row)
    writer.close()
    found = list(read_teacher_rows(tmp_path))
    assert [r["row_key"] for r in found] == [r["row_key"] for r in made]
    assert found[0]["sampling"]["seed"] == made[0]["sampling"]["seed"]
    assert [r["error"] for r in read_teacher_rows(tmp_path, "dead")] == ["prompt of 900 tokens"]

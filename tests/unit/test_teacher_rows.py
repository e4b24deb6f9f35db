"""What a teacher is asked, the rows that come of it, and what is made of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.config.teaching import Teacher
from largeforge_ray.data import row_hash
from largeforge_ray.teach import AnswerRecipe
from largeforge_ray.teach.products import chats as kept_chats
from largeforge_ray.teach.products import in_place
from largeforge_ray.teach.prompts import row_key, show_teacher
from largeforge_ray.types import Generation, Sampling

# What the teacher is shown, and the keys.

TEACHER = Teacher(
    instructions="Answer in JSON.",
    examples=[{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}],
)
SAMPLING = Sampling(temperature=0.7, max_tokens=40, seed=3)
ASKED = [{"role": "system", "content": "own brief"}, {"role": "user", "content": "two?"}]


def item(
    messages: Any = ASKED, answer: Any = 2, check: str | None = "json", name: str = "p1"
) -> dict[str, Any]:
    digest = row_hash(messages, answer)
    return {"item_id": name, "item_hash": digest, "messages": messages, "answer": answer, "check": check}


def keys(teacher: Teacher = TEACHER, key: str = "k", sampling: Sampling = SAMPLING, **what: Any) -> list[str]:
    samples = what.pop("samples", 2)
    recipe = AnswerRecipe(teacher, key, sampling, samples)
    return [one.row_key for one in recipe.work(item(**what))]


def test_the_teacher_sees_instructions_then_examples_then_the_prompt() -> None:
    shown = show_teacher(ASKED, TEACHER)
    assert [turn["content"] for turn in shown] == ["Answer in JSON.", "one?", "1", "two?"]
    assert [turn["role"] for turn in shown] == ["system", "user", "assistant", "user"]
    assert show_teacher(ASKED, Teacher()) == ASKED
    assert show_teacher(ASKED, Teacher(examples=TEACHER.examples)) == [ASKED[0], *TEACHER.examples, ASKED[1]]


def test_each_sample_is_a_request_of_its_own_that_can_be_made_again() -> None:
    recipe = AnswerRecipe(TEACHER, "k", SAMPLING, 5)
    made = recipe.work(item())
    assert len({one.row_key for one in made}) == len({one.request.sampling.seed for one in made}) == 5
    for index, one in enumerate(made):
        assert one.request.request_id == one.row_key
        assert one.request.messages == tuple(show_teacher(ASKED, TEACHER))
        assert replace(one.request.sampling, seed=3) == SAMPLING
        assert one.request.adapter is None
        assert one.item == item() | {"teacher": "k", "index": index}
    assert recipe.work(item()) == made


def test_more_samples_keep_the_rows_that_were_made() -> None:
    assert keys(samples=8)[:2] == keys(samples=2)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "another model"},
        {"teacher": Teacher(examples=TEACHER.examples)},
        {"teacher": Teacher(instructions=TEACHER.instructions)},
        {"sampling": replace(SAMPLING, temperature=0.8)},
        {"sampling": replace(SAMPLING, top_p=0.9)},
        {"sampling": replace(SAMPLING, max_tokens=41)},
        {"sampling": replace(SAMPLING, seed=4)},
        {"messages": [{"role": "user", "content": "three?"}]},
        {"answer": 3},
    ],
    ids=str,
)
def test_a_rows_key_changes_with_whatever_decides_the_row(change: dict[str, Any]) -> None:
    assert not set(keys(**change)) & set(keys())


def test_a_rows_key_does_not_change_with_its_name_or_its_check() -> None:
    assert keys(name="renamed") == keys()
    assert keys(check="contains") == keys()
    turned = [dict(reversed(turn.items())) for turn in ASKED]
    assert row_key(turned, "k", SAMPLING) == row_key(ASKED, "k", SAMPLING)


# From an answer to a row, and from rows to chats.


def chats_of(rows: list[dict[str, Any]], keep: str) -> list[dict[str, Any]]:
    return list(kept_chats(sorted(rows, key=in_place), keep))


def row(
    text: str = "2", reason: str | None = "stop", error: str | None = None, **what: Any
) -> dict[str, Any]:
    recipe = AnswerRecipe(TEACHER, "k", SAMPLING, 1)
    (work,) = recipe.work(item(**what))
    return recipe.row(work, [Generation(work.row_key, text, reason, 11, 5, 0.25, error=error)])


def test_a_row_holds_the_answer_its_verdict_and_what_it_cost() -> None:
    made = row()
    assert made["verdict"] == {"kept": True, "by": "json", "reason": "matches"}
    assert (made["text"], made["finish_reason"], made["error"]) == ("2", "stop", None)
    assert (made["prompt_tokens"], made["completion_tokens"], made["seconds"]) == (11, 5, 0.25)
    assert (made["row_key"], made["prompt_id"], made["teacher"]) == (keys()[0], "p1", "k")
    assert made["messages"] == ASKED  # what only the teacher saw is not learned
    assert made["sampling"]["index"] == 0
    assert (made["sampling"]["temperature"], made["sampling"]["max_tokens"]) == (0.7, 40)


def test_a_right_answer_that_was_cut_off_is_dropped_for_its_length() -> None:
    cut = {"kept": False, "by": "length", "reason": "cut off at max_tokens"}
    assert row(reason="length")["verdict"] == cut
    assert row(reason="length", check=None)["verdict"] == cut
    assert row("3", reason="length")["verdict"]["reason"] == "wrong values"


def test_an_error_has_no_verdict_and_is_never_learned_from() -> None:
    failed = row("2", error="prompt of 900 tokens exceeds the context")
    assert failed["verdict"] is None
    assert failed["error"] == "prompt of 900 tokens exceeds the context"
    assert chats_of([failed], "all") == chats_of([failed], "verified") == []


def test_kept_rows_become_chats_of_the_prompt_and_its_answer() -> None:
    assert chats_of([row(" 2\n"), row("3")], "verified") == [
        {
            "item_id": "p1",
            "item_hash": item()["item_hash"],
            "messages": [*ASKED, {"role": "assistant", "content": "2"}],
            "answer": None,
            "check": None,
        }
    ]


def test_all_keeps_what_the_check_drops() -> None:
    chats = chats_of([row("3"), row("2", reason="length")], "all")
    assert [chat["messages"][-1]["content"] for chat in chats] == ["2", "3"]


def test_the_same_answer_to_one_prompt_is_learned_once_and_to_two_prompts_twice() -> None:
    other = [{"role": "user", "content": "1 + 1?"}]
    chats = chats_of([row("2"), row("2 "), row(" 2"), row("2", messages=other)], "verified")
    assert len(chats) == 2
    assert len({chat["item_hash"] for chat in chats}) == 2


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from(["2", " 2", "3", "two"]),
        st.sampled_from(["stop", "length"]),
        st.sampled_from([None, "failed"]),
        messages=st.sampled_from([ASKED, ASKED[1:], [{"role": "user", "content": "1 + 1?"}]]),
    ),
    max_size=12,
)


@given(ROWS, st.sampled_from(["verified", "all"]), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_the_chats_do_not_depend_on_the_order_of_the_rows(
    rows: list[dict[str, Any]], keep: str, dice: random.Random
) -> None:
    chats = chats_of(rows, keep)
    shuffled = list(rows)
    dice.shuffle(shuffled)
    assert chats_of(shuffled, keep) == chats
    wanted = {
        (one["item_hash"], one["text"].strip())
        for one in rows
        if one["error"] is None and (keep == "all" or one["verdict"]["kept"])
    }
    assert [(chat["item_hash"], chat["messages"][-1]["content"]) for chat in chats] == sorted(wanted)

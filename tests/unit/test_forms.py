"""The forms rows come in: recognised by their fields, turned into one, never guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from largeforge_ray.data import ingest, read_rows
from largeforge_ray.data.forms import to_row
from largeforge_ray.errors import DataError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def reply(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def row(raw: dict[str, Any]) -> dict[str, Any]:
    return to_row(raw, lambda field, message: DataError(f"{field}: {message}"))


SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("raw", "form", "messages"),
    [
        ({"prompt": "q"}, "prompt", [user("q")]),
        ({"messages": [user("q")]}, "prompt", [user("q")]),
        ({"messages": [user("q"), reply("a")]}, "chat", [user("q"), reply("a")]),
        ({"prompt": "q", "completion": "a"}, "chat", [user("q"), reply("a")]),
        ({"prompt": [user("q")], "completion": [reply("a")]}, "chat", [user("q"), reply("a")]),
        ({"conversations": SHAREGPT}, "chat", [user("q"), reply("a")]),
        (
            {"conversations": SHAREGPT, "system": "s"},
            "chat",
            [{"role": "system", "content": "s"}, user("q"), reply("a")],
        ),
        ({"instruction": "q", "input": "", "output": "a"}, "chat", [user("q"), reply("a")]),
        ({"instruction": "q", "input": "x", "output": "a"}, "chat", [user("q\n\nx"), reply("a")]),
        (
            {"instruction": "q", "output": "a", "history": [["p", "b"]]},
            "chat",
            [user("p"), reply("b"), user("q"), reply("a")],
        ),
        ({"messages": [user("q"), reply("a")], "label": False}, "unpaired", [user("q"), reply("a")]),
        ({"prompt": "q", "completion": "a", "label": True}, "unpaired", [user("q"), reply("a")]),
    ],
)
def test_a_form_is_recognised(raw: dict[str, Any], form: str, messages: list[dict[str, str]]) -> None:
    found = row(raw)
    assert (found["form"], found["messages"], found["label"]) == (form, messages, raw.get("label"))


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"messages": [user("q")], "chosen": [reply("good")], "rejected": [reply("bad")]},
        {"conversations": SHAREGPT[:1], "chosen": {"from": "gpt", "value": "good"}, "rejected": reply("bad")},
        {"instruction": "q", "chosen": "good", "rejected": "bad"},
        {"chosen": [user("q"), reply("good")], "rejected": [user("q"), reply("bad")]},
    ],
)
def test_a_pair_is_a_prompt_and_two_answers(raw: dict[str, Any]) -> None:
    found = row(raw)
    assert found["form"] == "preference"
    assert (found["messages"], found["chosen"], found["rejected"]) == (
        [user("q")],
        [reply("good")],
        [reply("bad")],
    )


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "rejected: is the same as chosen"),
        ({"prompt": "q", "chosen": "a"}, "rejected: missing"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "rejected: must be text that is not empty"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": True}, "label: does not go with chosen"),
        ({"chosen": [reply("a")], "rejected": [reply("b")]}, "chosen: must answer a user's turn"),
        ({"prompt": "q", "chosen": [user("a")], "rejected": "b"}, "chosen: must begin and end with"),
        ({"prompt": "q", "label": True}, "label: judges an answer, but the last turn is not"),
        ({"messages": [user("q"), reply("a")], "label": 1}, "label: must be true .* found 1"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "from: 'bot' is not a speaker"),
        ({"conversations": [user("q")]}, "a ShareGPT turn has exactly 'from' and 'value'"),
        ({"instruction": "q", "output": ""}, "output: must be text that is not empty"),
        ({"instruction": "q", "outptu": "a"}, "outptu: unknown; a row with 'instruction' has"),
        ({"conversation": SHAREGPT}, "conversation: unknown; did you mean 'conversations'"),
        ({"instruction": "q", "messages": [user("q")]}, "instruction: the row also has 'messages'"),
    ],
)
def test_a_row_that_teaches_nothing_is_refused(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        row(raw)


def test_a_json_file_is_a_list_of_rows_and_keeps_both_answers(tmp_path: Path) -> None:
    pairs = [{"prompt": f"q{i}", "chosen": "good", "rejected": f"bad {i}"} for i in range(20)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    counts = ingest(tmp_path / "pairs.json", test_share=0.3, target=tmp_path)
    assert (counts["form"], counts["rows"]) == ("preference", 20)
    kept = [*read_rows(tmp_path, "train"), *read_rows(tmp_path, "test")]
    assert {r["rejected"][0]["content"] for r in kept} == {f"bad {i}" for i in range(20)}


def test_answers_to_one_prompt_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    rows = [
        {"messages": [user(f"q{i}"), reply(f"a{j}")], "label": j == 0} for i in range(30) for j in range(3)
    ]
    (tmp_path / "judged.json").write_text(json.dumps(rows))
    ingest(tmp_path / "judged.json", test_share=0.3, target=tmp_path)
    asked = [{r["messages"][0]["content"] for r in read_rows(tmp_path, part)} for part in ("train", "test")]
    assert all(asked)
    assert not asked[0] & asked[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "q"}', "holds dict; a .json file is one list of rows"),
        ("[", "not JSON"),
        (json.dumps([{"prompt": "q"}, {"prompt": " "}]), "row 2: field 'prompt': must be text"),
        (
            json.dumps([{"prompt": "q"}, {"messages": [user("q"), reply("a")]}]),
            "row 2: a row of form 'chat', but .*row 1 began with 'prompt'",
        ),
    ],
)
def test_a_bad_json_file_is_named_with_its_row(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=said):
        ingest(tmp_path / "x.json", test_share=0.3, target=tmp_path)

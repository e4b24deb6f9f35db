"""The forms people bring rows in, told apart by their fields and turned into one.

prompt      prompt (, answer, check), or any chat whose last turn is the user's
chat        messages; conversations (ShareGPT); instruction, input, output (Alpaca); prompt, completion
preference  any of these with chosen and rejected; or chosen and rejected as whole chats
unpaired    any chat with label
rationale   any chat with rationale, the reasoning behind its last answer
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from largeforge_ray.types import Message

ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
TURNS = ("prompt", "messages", "conversations", "instruction")
"""Where a row's first turns stand: exactly one of these, or none if ``chosen`` holds the whole chat."""
BESIDE = {
    "prompt": ("completion",),
    "messages": (),
    "conversations": ("system",),
    "instruction": ("input", "output", "system", "history"),
}
COMMON = ("id", "answer", "check", "chosen", "rejected", "label", "rationale", "expert")

Refuse = Callable[[str, str], Exception]
"""``refuse(field, message)`` makes the error that names the row."""


def to_row(raw: dict[str, Any], refuse: Refuse) -> dict[str, Any]:
    """``{form, messages, chosen, rejected, label, rationale}``; ``chosen`` and ``rejected`` continue
    ``messages``."""
    kind = _kind(raw, refuse)
    messages = _turns(raw, kind, refuse) if kind else []
    row: dict[str, Any] = {"messages": messages} | dict.fromkeys(("chosen", "rejected", "label", "rationale"))
    if "chosen" in raw or "rejected" in raw:
        return row | _pair(raw, messages, refuse) | {"form": "preference"}
    answered = messages[-1]["role"] == "assistant"
    if "label" in raw:
        if not isinstance(raw["label"], bool):
            raise refuse("label", f"must be true (good) or false (bad); found {raw['label']!r}")
        if not answered:
            raise refuse("label", "judges an answer, but the last turn is not the assistant's")
        return row | {"label": raw["label"], "form": "unpaired"}
    if "rationale" in raw:
        if not isinstance(raw["rationale"], str) or not raw["rationale"].strip():
            raise refuse("rationale", f"must be text; found {raw['rationale']!r}"[:300])
        if not answered:
            raise refuse("rationale", "is behind an answer, but the last turn is not the assistant's")
        return row | {"rationale": raw["rationale"], "form": "rationale"}
    return row | {"form": "chat" if answered else "prompt"}


def _kind(raw: dict[str, Any], refuse: Refuse) -> str | None:
    kinds = [t for t in TURNS if t in raw]
    if len(kinds) > 1:
        raise refuse(kinds[1], f"the row also has '{kinds[0]}'; give one of the two")
    if not kinds and not {"chosen", "rejected"} <= raw.keys():
        for field in sorted(set(raw) - {*COMMON, *sum(BESIDE.values(), ())}):
            if near := difflib.get_close_matches(field, TURNS, n=1):
                raise refuse(field, f"unknown; did you mean '{near[0]}'?")
        raise refuse("prompt", f"the row has none of {', '.join(TURNS)}; give its text as one of them")
    kind = kinds[0] if kinds else None
    known = [*COMMON, *([kind, *BESIDE[kind]] if kind else [])]
    unknown = sorted(set(raw) - set(known))
    if unknown:
        raise refuse(unknown[0], f"unknown; a row with '{kind or 'chosen'}' has {', '.join(known)}")
    return kind


def _turns(raw: dict[str, Any], kind: str, refuse: Refuse) -> list[Message]:
    if kind == "messages":
        turns = check_turns(raw[kind], kind, refuse)
    elif kind == "conversations":
        turns = check_turns(_system(raw) + _from_sharegpt(raw[kind], kind, refuse), kind, refuse)
    elif kind == "prompt":
        if isinstance(raw["prompt"], list):
            turns = check_turns(raw["prompt"], "prompt", refuse)
        else:
            turns = [_turn("user", raw["prompt"], "prompt", refuse)]
        if "completion" in raw:
            turns += _answer(raw["completion"], "completion", refuse)
    else:
        turns = _from_alpaca(raw, refuse)
    if next((t["role"] for t in turns if t["role"] != "system"), None) != "user":
        raise refuse(kind, "the first turn, or the first after a system turn, must be the user's")
    return turns


def _from_alpaca(raw: dict[str, Any], refuse: Refuse) -> list[Message]:
    turns = [_turn("system", t["content"], "system", refuse) for t in _system(raw)]
    for i, exchange in enumerate(raw.get("history") or []):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise refuse(f"history[{i}]", "must be a pair of question and answer")
        turns += [
            _turn("user", exchange[0], f"history[{i}][0]", refuse),
            _turn("assistant", exchange[1], f"history[{i}][1]", refuse),
        ]
    question = _turn("user", raw["instruction"], "instruction", refuse)
    if raw.get("input"):
        question["content"] += "\n\n" + _turn("user", raw["input"], "input", refuse)["content"]
    turns.append(question)
    if "output" in raw:
        turns += _answer(raw["output"], "output", refuse)
    return turns


def _pair(raw: dict[str, Any], prompt: list[Message], refuse: Refuse) -> dict[str, Any]:
    for field in ("chosen", "rejected"):
        if field not in raw:
            raise refuse(field, "missing; a preference row has both chosen and rejected")
    for field in ("label", "completion", "output"):
        if field in raw:
            raise refuse(field, "does not go with chosen and rejected; remove it")
    chosen = _answer(raw["chosen"], "chosen", refuse)
    rejected = _answer(raw["rejected"], "rejected", refuse)
    if not prompt:
        shared = 0
        while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if chosen == rejected or not chosen or not rejected:
        raise refuse("rejected", "is the same as chosen; a pair that does not differ teaches nothing")
    if not prompt or prompt[-1]["role"] != "user":
        raise refuse("chosen", "must answer a user's turn; give the prompt before it")
    for field, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[0]["role"] != "assistant" or turns[-1]["role"] != "assistant":
            raise refuse(field, "must begin and end with an assistant turn")
    return {"messages": prompt, "chosen": chosen, "rejected": rejected}


def _answer(value: Any, field: str, refuse: Refuse) -> list[Message]:
    """An answer as text, as one turn of either style, or as several."""
    if isinstance(value, str):
        return [_turn("assistant", value, field, refuse)]
    turns = [value] if isinstance(value, dict) else value
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
        turns = _from_sharegpt(turns, field, refuse)
    return check_turns(turns, field, refuse)


def _system(raw: dict[str, Any]) -> list[Any]:
    return [{"role": "system", "content": raw["system"]}] if raw.get("system") else []


def _from_sharegpt(value: Any, field: str, refuse: Refuse) -> list[Any]:
    if not isinstance(value, list):
        raise refuse(field, "must be a list with at least one turn")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or set(turn) != {"from", "value"}:
            raise refuse(f"{field}[{i}]", "a ShareGPT turn has exactly 'from' and 'value'")
        if turn["from"] not in SHAREGPT_ROLES:
            known = ", ".join(SHAREGPT_ROLES)
            raise refuse(f"{field}[{i}].from", f"'{turn['from']}' is not a speaker. Supported: [{known}]")
        turns.append({"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]})
    return turns


def check_turns(value: Any, field: str, refuse: Refuse) -> list[Message]:
    """A list of turns with known roles and text that is not empty."""
    if not isinstance(value, list) or not value:
        raise refuse(field, "must be a list with at least one turn")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise refuse(f"{field}[{i}]", "a turn has exactly 'role' and 'content'")
        if turn["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise refuse(f"{field}[{i}].role", f"'{turn['role']}' is not a role. Supported: [{known}]")
        turns.append(_turn(turn["role"], turn["content"], f"{field}[{i}].content", refuse))
    return turns


def _turn(role: str, content: Any, field: str, refuse: Refuse) -> Message:
    if not isinstance(content, str) or not content.strip():
        raise refuse(field, f"must be text that is not empty; found {content!r}"[:300])
    return {"role": role, "content": content}


def prompt_turns(messages: list[Message]) -> list[Message]:
    """What a chat asks: its turns without the assistant's last ones."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]

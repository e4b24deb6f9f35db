"""The same item in another form: what a robust model answers alike.

Only the question changes: neither the examples before it, nor choices, code, numbers and formulas. What is
drawn depends on the item and the perturbation's name alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from largeforge_ray.evaluate.items import item as make_item

TYPO_SHARE = 0.05
QUESTIONS = ("question", "query", "problem", "prompt", "instruction", "input", "text")
"""Fields of a document that hold its question; of those that stand in the prompt the first one counts."""
OPENINGS = (
    "Please answer the following.",
    "Consider this with care.",
    "Here is something to work on.",
    "Give your best answer to what follows.",
)
KEPT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|\$[^$]+\$"  # code and formulas
    r"|^[^\S\n]*\(?[A-Z][.):][^\S\n][^\n]*$"  # a lettered choice
    r"|\S*[\d_\\/<>={}\[\]@]\S*",  # numbers, paths and names of programs
    re.DOTALL | re.MULTILINE,
)
WORD = re.compile(r"(?<![\w'])[^\W\d_]{4,}(?![\w'(])")


def perturb(item: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The item under perturbation ``name``, or None where it does not apply: what is asked stays the same."""
    rng = random.Random(f"{name} {item['item_hash']}")
    changed = _rotated(item, rng) if name == "options" else _reworded(item, WAYS[name], rng)
    if changed is None:
        return None
    kept = {key: value for key, value in item.items() if key not in ("item_hash", "variant", "origin")}
    return make_item(**kept | changed, variant=name, origin=item["origin"])


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text in which an item asks: its plain prompt, or the user's last turn."""

    item: dict[str, Any]

    @property
    def turn(self) -> int:
        turns = self.item["messages"]
        return max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=len(turns) - 1)

    @property
    def text(self) -> str:
        if self.item["messages"] is None:
            return str(self.item["context"])
        return str(self.item["messages"][self.turn]["content"])

    def replaced(self, text: str) -> dict[str, Any]:
        """The item's fields with another text."""
        if self.item["messages"] is None:
            return {"context": text}
        turns = [dict(turn) for turn in self.item["messages"]]
        turns[self.turn]["content"] = text
        return {"messages": turns}

    def question(self) -> tuple[int, int] | None:
        """Where the question stands, which in a chat without a known one is the whole turn."""
        found = ((self.item["doc"] or {}).get(field) for field in QUESTIONS)
        for question in (each.strip() for each in found if isinstance(each, str) and each.strip()):
            if (start := self.text.rfind(question)) >= 0:
                return start, start + len(question)
        return None if self.item["messages"] is None else (0, len(self.text))


Way = Callable[[str, random.Random], str]


def _reworded(item: dict[str, Any], way: Way, rng: random.Random) -> dict[str, Any] | None:
    prompt = Prompt(item)
    span = prompt.question()
    if span is None or item["check"] == "code":
        return None
    start, end = span
    question = prompt.text[start:end]
    other = way(question, rng)
    if other == question:
        return None
    return prompt.replaced(prompt.text[:start] + other + prompt.text[end:])


def _typos(text: str, rng: random.Random) -> str:
    """Two letters swapped, one dropped or one doubled inside one of twenty words, at least in one."""
    words = [found.span() for found in WORD.finditer(text) if not _is_kept(text, found.start())]
    chosen = rng.sample(words, min(len(words), max(1, round(TYPO_SHARE * len(words)))))
    for start, end in sorted(chosen, reverse=True):
        text = text[:start] + _mistyped(text[start:end], rng) + text[end:]
    return text


def _mistyped(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word) - 2)
    before, a, b, after = word[:place], word[place], word[place + 1], word[place + 2 :]
    if a == b:
        return before + a + after
    return before + rng.choice((b + a, b, a + a + b)) + after


def _lower(text: str, rng: random.Random) -> str:
    made, end = "", 0
    for kept in KEPT.finditer(text):
        made += text[end : kept.start()].lower() + kept.group()
        end = kept.end()
    return made + text[end:].lower()


def _paraphrased(text: str, rng: random.Random) -> str:
    return f"{rng.choice(OPENINGS)} {text}"


WAYS: dict[str, Way] = {"typos": _typos, "case": _lower, "paraphrase": _paraphrased}


def _is_kept(text: str, place: int) -> bool:
    return any(found.start() <= place < found.end() for found in KEPT.finditer(text))


def _rotated(item: dict[str, Any], rng: random.Random) -> dict[str, Any] | None:
    """The choices in another order: those in the prompt if the answer is a letter, else those scored."""
    # lm-eval's own judge goes by the document, where the order stays.
    if item["kind"] != "choice" or item["check"] != "choice":
        return None
    choices = item["choices"]
    shift = rng.randrange(1, len(choices))
    moved = [(place - shift) % len(choices) for place in range(len(choices))]
    true = item["answer"]
    answer = sorted(moved[place] for place in true) if isinstance(true, list) else moved[true]
    if [choice.strip() for choice in choices] != [chr(ord("A") + i) for i in range(len(choices))]:
        return {"choices": choices[shift:] + choices[:shift], "answer": answer}
    prompt = Prompt(item)
    found, asked = list(_lettered(len(choices)).finditer(prompt.text)), prompt.question()
    # Choices of several lines are not found, and the last ones that are may be an example's.
    if not found or asked is None or found[-1].start() < asked[0]:
        return None
    places = [found[-1].span(i + 1) for i in range(len(choices))]
    texts = [prompt.text[start:end] for start, end in places]
    text = prompt.text
    for (start, end), other in reversed(list(zip(places, texts[shift:] + texts[:shift], strict=True))):
        text = text[:start] + other + text[end:]
    return prompt.replaced(text) | {"answer": answer}


def _lettered(count: int) -> re.Pattern[str]:
    """Lines that begin with A, B and so on, one group for each choice's text."""
    lines = (rf"[^\S\n]*\(?{chr(ord('A') + i)}[.):][^\S\n]*([^\n]*?)[^\S\n]*$" for i in range(count))
    return re.compile("^" + r"\n".join(lines), re.MULTILINE)

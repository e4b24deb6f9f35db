"""Keywords that tell an expert's own prompts from everything else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from largeforge_ray.routing.features import words

# Words that English prompts of any subject are full of. Other languages lose theirs through ``background``.
_STOP_TEXT = """
a about above after again all also am an and any are as at be because been before being below between
both but by can could did do does doing don down during each else few for from further get give had has
have having he her here hers him his how i if in into is it its just let like make may me might more most
must my no nor not now of off on once one only or other our out over own please put s same say see shall
she should so some such t take tell than that the their them then there these they this those through to
too under until up us use used using very was we were what when where which while who whom why will with
would write yes you your
"""
MOST_PROMPTS = 64
"""Of those an expert was made for that its territory keeps."""
STOP_WORDS = frozenset(_STOP_TEXT.split())


def territory_keywords(
    prompts: Iterable[str], *, background: Iterable[str] = (), min_share: float = 0.3, limit: int = 24
) -> dict[str, float]:
    """Words that stand in at least ``min_share`` of ``prompts``, each with a weight in 0..1.

    The weight is the share of prompts that have the word, less the share of ``background`` prompts that
    have it: a word equally common elsewhere says nothing. The ``limit`` heaviest are kept; ties go to
    the alphabet, so the result depends on no order.

    Prompts that share no words, such as free questions on one subject, give an empty dict: such a
    territory is out of reach of keywords.
    """
    inside, outside = _shares(prompts), _shares(background)
    weights = {
        word: round(share - outside.get(word, 0.0), 4)
        for word, share in inside.items()
        if share >= min_share and _tells(word)
    }
    heaviest = sorted((w for w in weights if weights[w] >= min_share), key=lambda w: (-weights[w], w))
    return {word: weights[word] for word in heaviest[:limit]}


def _shares(texts: Iterable[str]) -> dict[str, float]:
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        counts.update(words(text))
        total += 1
    return {word: count / total for word, count in counts.items()}


def _tells(word: str) -> bool:
    one_latin_letter = len(word) == 1 and word.isascii()
    return word not in STOP_WORDS and not one_latin_letter and not word.isnumeric()


def last_user(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a chat's last user turn says. Raises ``StopIteration`` for a chat without one."""
    return str(next(m["content"] for m in reversed(messages) if m["role"] == "user"))


def first_distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, as many as a territory keeps."""
    seen: dict[str, None] = {}
    for text in texts:
        seen[text] = None
        if len(seen) == MOST_PROMPTS:
            break
    return list(seen)

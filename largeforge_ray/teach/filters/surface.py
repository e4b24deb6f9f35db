"""Filters that look at an answer's words and letters. Each returns why it refuses, or None."""

from __future__ import annotations

from functools import cache
from typing import Any

import regex

from largeforge_ray.config.filters import Charset, Language, Length, Repetition
from largeforge_ray.teach.filters.words import ngrams, words
from largeforge_ray.teach.verify import FENCED

LETTER = regex.compile(r"\p{L}")


def length(config: Length, text: str) -> str | None:
    count = len(words(text))
    if config.min_words is not None and count < config.min_words:
        return f"fewer than {config.min_words} words"
    if config.max_words is not None and count > config.max_words:
        return f"more than {config.max_words} words"
    return None


def charset(config: Charset, text: str) -> str | None:
    """Letters of no script, such as the micro sign, count as allowed; a text without letters is kept."""
    letters = len(LETTER.findall(text))
    allowed = len(_letters_of(tuple(config.scripts)).findall(text))
    if allowed >= config.min_share * letters:
        return None
    return f"under {config.min_share} of the letters are {', '.join(config.scripts)}"


@cache
def _letters_of(scripts: tuple[str, ...]) -> Any:
    named = "".join(rf"\p{{Script={s}}}" for s in ("common", "inherited", *scripts))
    return regex.compile(rf"[[{named}]&&\p{{L}}]", regex.V1)


def language(config: Language, text: str) -> str | None:
    """By py3langid's naive Bayes over byte n-grams. A text too short to tell is kept."""
    code, probability = _identifier().classify(FENCED.sub("", text))
    # zxx is the code of what is no language: numbers, markup, code.
    if code in (*config.languages, "zxx") or probability < config.confidence:
        return None
    return f"not in {', '.join(config.languages)}"


@cache
def _identifier() -> Any:
    """Once a process: some 60 MB and one second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def repetition(config: Repetition, text: str) -> str | None:
    """The first time an n-gram is said counts for nothing; words in overlapping n-grams count once."""
    found = words(text)
    seen: set[str] = set()
    repeated: set[int] = set()
    for start, gram in enumerate(ngrams(found, config.n)):
        if gram in seen:
            repeated.update(range(start, start + config.n))
        seen.add(gram)
    if len(repeated) <= config.max_share * len(found):
        return None
    return f"over {config.max_share} of the words repeat"

"""How offensive a text is, by a linear classifier of its words.

The weights are those of alt-profanity-check 1.9.1 (MIT; its licence is kept in the file beside this one):
TF-IDF of single English words into five linear SVMs, each with Platt's sigmoid (Platt 1999), trained on some
200,000 comments and posts that people had labelled. It knows words and not what they say together: insults
and threats are found, a prejudice in polite words is not, and code that kills a process looks like a threat.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = Path(__file__).with_suffix(".safetensors")
WORD = re.compile(r"\b\w\w+\b")


def toxicity(texts: Iterable[str]) -> list[float]:
    """Probability, 0 to 1, that people would call each text offensive; little for one of unknown words."""
    return [_probability(text) for text in texts]


def _probability(text: str) -> float:
    places, idf_V, weights_VF, bias_F = _model()
    counted = Counter(places[word] for word in WORD.findall(text.lower()) if word in places)
    known_K, count_K = [*counted], np.array([*counted.values()], np.float64)
    tfidf_K = count_K * idf_V[known_K]
    length = np.linalg.norm(tfidf_K) or 1.0
    logit_F = bias_F + tfidf_K / length @ weights_VF[known_K]
    return float(np.mean(1.0 / (1.0 + np.exp(-logit_F))))


@cache
def _model() -> tuple[dict[str, int], Any, Any, Any]:
    """V words and the number of each, their idf, and for F classifiers the weights and biases of a logit."""
    from safetensors import safe_open

    with safe_open(WEIGHTS, framework="numpy") as file:
        words = file.metadata()["words"].split("\n")
        idf_V, weights_VF, bias_F = (file.get_tensor(name) for name in ("idf_V", "weights_VF", "bias_F"))
    return {word: place for place, word in enumerate(words)}, idf_V, weights_VF, bias_F

"""Toxicity is what scikit-learn computes from the same weights, and tells insults from facts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from largeforge_ray.evaluate.toxicity import WEIGHTS, toxicity

OFFENSIVE = [
    "You are a stupid idiot and nobody likes you.",
    "Shut up, you worthless piece of garbage.",
    "You are disgusting and pathetic.",
]
PLAIN = [
    "The capital of France is Paris.",
    "The killer whale is a marine mammal.",
    "The Jewish community celebrated Hanukkah.",
    "He died in a car crash in 1997.",
    "",
]


def test_insults_stand_apart_from_facts() -> None:
    assert min(toxicity(OFFENSIVE)) > 0.9
    assert max(toxicity(PLAIN)) < 0.3


@pytest.fixture(scope="module")
def oracle():
    """The same by scikit-learn's vectoriser, which has its own words, counts, idf and norm."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    with safe_open(WEIGHTS, framework="numpy") as file:
        words = file.metadata()["words"].split("\n")
        assert "MIT License" in file.metadata()["license"]
        idf, weights, bias = (file.get_tensor(name) for name in ("idf_V", "weights_VF", "bias_F"))
    vectoriser = TfidfVectorizer(stop_words="english", vocabulary=words)
    vectoriser.idf_ = idf.astype(np.float64)

    def compute(texts: list[str]) -> list[float]:
        logits = vectoriser.transform(texts) @ weights.astype(np.float64) + bias
        return (1 / (1 + np.exp(-logits))).mean(axis=1).tolist()

    return words, compute


def test_known_answers_stay_what_the_original_package_gives() -> None:
    texts = ["I will find you and kill you. I will, I will.", "Women are too emotional to lead.", "zzzqx", ""]
    assert toxicity(texts) == pytest.approx([0.946732, 0.136252, 0.036376, 0.036376], abs=1e-6)


@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_it_is_what_scikit_learn_computes(oracle, data: st.DataObject) -> None:
    words, compute = oracle
    known = st.sampled_from(words).map(lambda word: word.upper() if len(word) % 2 else word)
    texts = data.draw(st.lists(st.lists(known | st.text(max_size=9)).map(" ".join), min_size=1, max_size=4))
    assert toxicity(texts) == pytest.approx(compute(texts), abs=1e-5)

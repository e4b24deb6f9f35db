"""What filters know of other texts: n-grams of test items, and rows nearly the same as an earlier one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.teach.filters import ContaminationIndex, NearDuplicates


def test_overlap_is_the_share_of_the_texts_ngrams() -> None:
    index = ContaminationIndex(["a b c d", "c d e"], n=2)
    assert index.overlap("A, b. c d e") == 1.0
    assert index.overlap("a b x y") == pytest.approx(1 / 3)
    assert index.overlap("x y z") == index.overlap("") == 0.0
    assert ContaminationIndex([], n=2).overlap("a b") == 0.0


def test_a_short_text_is_compared_as_a_whole_and_one_word_of_many_not_at_all() -> None:
    index = ContaminationIndex(["What is the capital of France?", "Paris"], n=8)
    assert index.overlap("what is the capital of france") == 1.0
    assert index.overlap("First: what is the capital of France? And why?") == 0.0
    assert index.overlap("Paris") == 0.0


TEXTS = st.lists(st.sampled_from("abcdef"), max_size=12).map(" ".join)


@given(st.lists(TEXTS, max_size=6), TEXTS)
def test_contamination_is_what_comparing_sets_of_ngrams_says_in_any_order(
    texts: list[str], text: str
) -> None:
    def grams(text: str) -> list[tuple[str, ...]]:
        w = text.split()
        return [] if len(w) < 2 else [tuple(w[i : i + 3]) for i in range(max(1, len(w) - 2))]

    known = {gram for each in texts for gram in grams(each)}
    found = [gram in known for gram in grams(text)]
    expected = sum(found) / len(found) if found else 0.0
    assert ContaminationIndex(texts, n=3).overlap(text) == pytest.approx(expected)
    assert ContaminationIndex(texts[::-1], n=3).overlap(text) == pytest.approx(expected)


def kept_by(texts: list[str], threshold: float = 0.8, ngram: int = 3) -> list[str]:
    near = NearDuplicates(threshold, ngram)
    return [text for text in texts if not near.seen(text)]


def test_near_duplicates_are_found_and_different_texts_are_not() -> None:
    long = " ".join(f"word{i}" for i in range(200))
    edited = long.replace("word100", "changed")  # 3 of 198 trigrams differ: a similarity of 0.97
    half = " ".join(f"word{i}" for i in range(100)) + " " + " ".join(f"other{i}" for i in range(100))
    assert kept_by([long, edited, half, long.upper()]) == [long, half]
    assert kept_by(["What is 5 + 3?", "What is 5 - 3?", "what is 5 + 3"]) == [
        "What is 5 + 3?",
        "What is 5 - 3?",
    ]
    assert kept_by(["Yes.", "yes", "No.", "...", "???", "..."]) == ["Yes.", "No.", "...", "???"]
    assert kept_by(["法国的首都是巴黎", "法国的首都是巴黎。", "德国的首都是柏林"]) == [
        "法国的首都是巴黎",
        "德国的首都是柏林",
    ]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_the_threshold_is_where_pairs_begin_to_be_found(threshold: float) -> None:
    def found(similarity: float) -> float:
        """Share of 30 pairs of sets of 400 words in all that are found."""
        hits = 0
        for pair in range(30):
            own = round(400 * (1 - similarity) / 2)
            shared = [f"s{pair}x{i}" for i in range(400 - 2 * own)]
            sides = [" ".join([*shared, *(f"{side}{pair}x{i}" for i in range(own))]) for side in "ab"]
            hits += len(kept_by(sides, threshold, ngram=1)) == 1
        return hits / 30

    assert found(threshold - 0.25) <= 0.2
    assert found(min(1.0, threshold + 0.15)) >= 0.8


@given(st.lists(st.text(max_size=30), max_size=8))
@settings(deadline=None, max_examples=50)
def test_a_text_is_a_near_duplicate_of_itself_and_runs_agree(texts: list[str]) -> None:
    kept = kept_by(texts)
    assert kept_by(texts) == kept
    assert kept_by(kept) == kept
    assert kept_by([*texts, *texts]) == kept

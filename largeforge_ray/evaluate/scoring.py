"""How good an answer to an item is: choices by their log-probabilities, words by the item's check."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from largeforge_ray.errors import DataError
from largeforge_ray.evaluate import harness
from largeforge_ray.evaluate.owntask import own_score
from largeforge_ray.teach.sandbox import run_code
from largeforge_ray.teach.verify import extract_code, verify
from largeforge_ray.types import ChoiceScores, Generation


@dataclass(frozen=True, slots=True)
class Judged:
    """``quality`` 0..1 is the value of ``metric`` among ``scores``; ``answer`` is what was chosen or said.

    ``confidence`` is the share of the chosen one in the choices' probabilities, or of an answer in words the
    geometric mean of its tokens' probabilities, None if it is not known.
    """

    answer: str
    quality: float
    metric: str
    scores: dict[str, float] = field(default_factory=dict)
    confidence: float | None = None


def judge(item: dict[str, Any], answer: ChoiceScores | Generation) -> Judged:
    """Judge one answer; one that ended in an error has quality 0.

    Raises ``ResourceError`` if the check is ``code`` and this machine cannot contain what it would run.
    """
    metric = str((item["rules"] or {}).get("metric", item["check"]))
    if answer.error is not None:
        text = answer.text if isinstance(answer, Generation) else ""
        return Judged(text, 0.0, metric, {metric: 0.0})
    if isinstance(answer, ChoiceScores):
        return _chosen(item, answer, metric)
    text = cut(answer.text, item["stop"] or ())
    scores = _words(item, text, metric)
    confidence = None if answer.mean_logprob is None else math.exp(answer.mean_logprob)
    return Judged(text, _quality(scores, metric), metric, scores, confidence)


def _words(item: dict[str, Any], text: str, metric: str) -> dict[str, float]:
    check, rules = item["check"], item["rules"] or {}
    if check == "harness":
        return harness.judge(rules["config"], item["doc"], text)
    if check == "function":
        return {metric: own_score(rules, text, item["doc"])}
    if check == "code" and "prefix" in rules:
        return {metric: float(completes(rules["prefix"], text, item["answer"], chat=bool(item["messages"])))}
    return {metric: float(verify(check, text, item["answer"]).kept)}


def _chosen(item: dict[str, Any], answer: ChoiceScores, metric: str) -> Judged:
    rules = item["rules"] or {}
    texts = [choice.removeprefix(rules.get("delimiter", "")) for choice in item["choices"]]
    by_character = [logp / len(text) for logp, text in zip(answer.logprobs, texts, strict=True)]
    shares = shares_of(answer.logprobs)
    best, best_norm = _first_best(answer.logprobs), _first_best(by_character)
    if item["check"] == "harness":
        pairs = list(zip(answer.logprobs, answer.greedy, strict=True))
        scores = harness.judge(rules["config"], item["doc"], pairs)
    else:
        true = item["answer"] if isinstance(item["answer"], list) else [item["answer"]]
        scores = {"acc": float(best in true), "acc_norm": float(best_norm in true)}
        if isinstance(item["answer"], list):
            scores["mc2"] = min(1.0, sum(shares[place] for place in true))
    place = best_norm if metric == "acc_norm" else best
    return Judged(texts[place], _quality(scores, metric), metric, scores, shares[place])


def _quality(scores: dict[str, float], metric: str) -> float:
    value = scores.get(metric)
    if value is None or not 0.0 <= value <= 1.0:
        raise DataError(
            f"metric '{metric}' gave {value} for an answer; only a number from 0 to 1 is a quality, choose "
            "another task"
        )
    return value


def shares_of(logprobs: Sequence[float]) -> list[float]:
    """Softmax."""
    most = max(logprobs)
    weights = [math.exp(logp - most) for logp in logprobs]
    return [weight / sum(weights) for weight in weights]


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of ``stop``: an endpoint may take fewer of them than a task has."""
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def completes(prefix: str, text: str, tests: str, *, chat: bool) -> bool:
    """Whether ``text`` continues the program ``prefix`` so that ``tests`` pass, as in HumanEval (Chen et al.
    2021, arXiv:2107.03374). A chat's code follows the prefix, whether it is the rest or the whole."""
    # A program that ends the interpreter by itself would pass whatever the tests say.
    passed = secrets.token_hex(16)
    program = prefix + (f"\n{extract_code(text)}" if chat else text)
    result = run_code(f"{program}\n\n{tests}\n\nprint('\\n{passed}', flush=True)\n")
    return result.passed and passed in result.stdout


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k answers is right when c of n were, without bias: Chen et al. 2021
    (arXiv:2107.03374), equation 1. Raises ``ValueError`` unless 0 <= c <= n and 1 <= k <= n."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} of {c} right among {n} answers; draw at least k answers and count them")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)

"""Checks that compare an answer with what is expected; each a pure function with its reason."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

from largeforge_ray.types import Verdict

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def verify(check: str | None, text: str, answer: Any) -> Verdict:
    """Whether ``text`` answers rightly. Without a check any answer that is not empty is kept."""
    if not text.strip():
        return Verdict(False, "length", "empty answer")
    if check is None:
        return Verdict(True, "none", "no check")
    reason = CHECKS[check](text.strip(), answer)
    return Verdict(reason is None, check, reason or "matches")


def _exact(text: str, answer: Any) -> str | None:
    return None if text == str(answer).strip() else "differs from the answer"


def _contains(text: str, answer: Any) -> str | None:
    return None if str(answer).casefold() in text.casefold() else "answer not contained"


def _json(text: str, answer: Any) -> str | None:
    try:
        value = json.loads(text)
        same = _same(value, answer)
    except (ValueError, RecursionError):
        return "not JSON"
    if type(value) is not type(answer):
        return "JSON of another type"
    if isinstance(value, dict) and set(value) != set(answer):
        return "wrong keys"
    return None if same else "wrong values"


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values; Python takes True for 1, JSON does not."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _number(text: str, answer: Any) -> str | None:
    """The last number in the text counts, as in GSM8K (Cobbe et al. 2021, arXiv:2110.14168)."""
    found = NUMBER.findall(text)
    if not found:
        return "no number"
    return (
        None
        if math.isclose(float(found[-1].replace(",", "")), float(answer), rel_tol=1e-12)
        else "wrong number"
    )


CHECKS: dict[str, Callable[[str, Any], str | None]] = {
    "exact": _exact,
    "contains": _contains,
    "json": _json,
    "number": _number,
}

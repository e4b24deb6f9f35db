"""Checks that compare an answer with what is expected, each with its reason; only ``code`` is not pure."""

from __future__ import annotations

import builtins
import json
import math
import re
import secrets
from collections.abc import Callable
from typing import Any

from largeforge_ray.teach.sandbox import CodeResult, run_code
from largeforge_ray.types import Verdict

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
FENCED = re.compile(r"^[ ]*```[ ]*([\w+-]*)[^\n]*\n(.*?)(?:^[ ]*```|\Z)", re.DOTALL | re.MULTILINE)
LIMITS = {"timeout": "time limit", "memory": "memory limit", "output": "output limit", "killed": "crashed"}


def verify(check: str | None, text: str, answer: Any) -> Verdict:
    """Whether ``text`` answers rightly. Without a check any answer that is not empty is kept.

    Raises ``ResourceError`` if the check is ``code`` and this machine cannot contain what it would run.
    """
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


def extract_code(text: str) -> str:
    """The first fenced block that is Python, else the first without a language, else the whole text.

    A block that is cut off ends with the text.
    """
    blocks = [(language.lower(), code) for language, code in FENCED.findall(text)]
    for wanted in (("python", "py", "python3"), ("",)):
        for language, code in blocks:
            if language in wanted:
                return str(code)
    return text


def _code(text: str, answer: Any) -> str | None:
    """``answer`` is Python tests, run after the reply's code as in HumanEval (Chen et al. 2021)."""
    # A reply that ends the interpreter by itself would pass whatever the tests say.
    passed = secrets.token_hex(16)
    tested = f"{extract_code(text)}\n\n{answer}\n\nprint('\\n{passed}', flush=True)\n"
    result = run_code(tested)
    if result.outcome in LIMITS:
        return LIMITS[result.outcome]
    return None if result.passed and passed in result.stdout else _why_not(result)


def _why_not(result: CodeResult) -> str:
    """Only names of built-in exceptions, because a reason is counted and replies can name their own."""
    for line in reversed(result.stderr.splitlines()):  # a message may have lines of its own
        kind = getattr(builtins, line.partition(":")[0], None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            return f"tests fail: {kind.__name__}"
    return "tests fail: another exception" if "Traceback" in result.stderr else "ends before its tests"


CHECKS: dict[str, Callable[[str, Any], str | None]] = {
    "exact": _exact,
    "contains": _contains,
    "json": _json,
    "number": _number,
    "code": _code,
}

"""Replies that are programs: what is run of them, and in which words they are kept or dropped."""

from __future__ import annotations

import os

import pytest

from largeforge_ray.errors import ResourceError
from largeforge_ray.teach import sandbox, verify
from largeforge_ray.teach.sandbox import available
from largeforge_ray.teach.verify import extract_code
from largeforge_ray.types import Verdict

DOUBLE = "def double(x):\n    return 2 * x"
TESTS = "assert double(2) == 4\nassert double('a') == 'aa', 'text'"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nThis is it.", "x = 1\n"),
        ("```Python title=a.py\nx = 1\n```", "x = 1\n"),
        ("```py\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("1. First\n   ```python\nx = 1\n   ```", "x = 1\n"),
        ("```bash\npip install x\n```\nthen\n```python\nx = 1\n```", "x = 1\n"),
        ("```\n$ ls\n```\nthen\n```python\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\nUse it:\n```python\nx = 2\n```", "x = 1\n"),
        ("```python\nx = '``` inside'\n```", "x = '``` inside'\n"),
        ("```python\nx = 1\ny =", "x = 1\ny ="),
        ("```python\n```", ""),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("an `x = 1` in a line", "an `x = 1` in a line"),
    ],
)
def test_the_first_python_block_is_the_code_and_without_one_the_whole_text(text: str, code: str) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DOUBLE, "matches"),
        (f"Here it is.\n```python\n{DOUBLE}\n```\nIt doubles.", "matches"),
        (f"{DOUBLE}\nif __name__ == '__main__':\n    print(double(1))", "matches"),
        (DOUBLE.replace("2 *", "3 *"), "tests fail: AssertionError"),
        ("x = 1", "tests fail: NameError"),
        ("I cannot write code.", "tests fail: SyntaxError"),
        ("class Odd(Exception): pass\nraise Odd('x')", "tests fail: another exception"),
        ("raise ValueError('first line\\nsecond line')", "tests fail: ValueError"),
        ("def double(x): return double(x)", "tests fail: RecursionError"),
        (f"{DOUBLE}\nimport sys\nsys.exit(0)", "ends before its tests"),
        (f"{DOUBLE}\nimport sys\nsys.exit('done')", "ends before its tests"),
        ("import os\nos._exit(0)", "ends before its tests"),
        ("x = bytes(8 << 30)", "memory limit"),
        ("while True: print('x' * 1000)", "output limit"),
        ("import os\nos.kill(os.getpid(), 11)", "crashed"),
    ],
)
def test_a_reply_is_kept_if_its_code_passes_the_tests_and_dropped_with_a_reason_that_can_be_counted(
    text: str, reason: str
) -> None:
    if (missing := available()) and os.environ.get("CI") != "true":
        pytest.skip(missing)
    assert verify("code", text, TESTS) == Verdict(reason == "matches", "code", reason)


def test_a_reply_that_does_not_end_is_dropped_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    if (missing := available()) and os.environ.get("CI") != "true":
        pytest.skip(missing)
    monkeypatch.setattr(sandbox.run_code, "__kwdefaults__", {"limits": sandbox.Limits(seconds=0.5)})
    assert verify("code", "while True: pass", TESTS) == Verdict(False, "code", "time limit")


def test_where_code_cannot_be_contained_the_check_raises_and_judges_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_call_jail", lambda program, limits: {"refused": "unshare"})
    with pytest.raises(ResourceError, match="generated code cannot be contained here: unshare"):
        verify("code", DOUBLE, TESTS)

"""Files of 400 lines and functions of 80 at most: what fits in a head."""

from __future__ import annotations

import ast

from tests.contracts._tree import PACKAGES, name, parse, report, sources

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
FOLDERS = (*PACKAGES, "tests", "benchmarks")


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*FOLDERS)}
    report(
        [f"{name(p)}: {n} lines, at most {MAX_FILE_LINES}" for p, n in lengths.items() if n > MAX_FILE_LINES]
    )


def test_functions_are_short() -> None:
    report(
        [
            f"{name(path)}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
            for path in sources(*FOLDERS)
            for node in ast.walk(parse(path))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
        ]
    )

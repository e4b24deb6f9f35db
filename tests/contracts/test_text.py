"""What must not stand in the tree: leftovers, swallowed errors, hosts, other people's private modules."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from tests.contracts._tree import (
    PACKAGES,
    ROOT,
    attribute_chains,
    files,
    ignored_patterns,
    imports,
    name,
    parse,
    report,
    sources,
    text_files,
)

TOP_LEVEL = {
    *(
        "largeforge_ray",
        "actors",
        "serve_apps",
        "train_jobs",
        "cluster",
        "tests",
        "benchmarks",
        "docs",
        "requirements",
    ),
    *(
        ".ci",
        "README.md",
        "pyproject.toml",
        "Makefile",
        "CONTRIBUTING.md",
        "LICENSE",
        "CHANGELOG.md",
        ".gitignore",
    ),
}
# Bracketed letters keep these patterns from finding themselves.
FORBIDDEN = {
    "a leftover": r"\b(TOD[O]|FIXM[E]|XX[X]|HAC[K])\b",
    "code hidden from coverage": r"pragma: n[o] cover",
    "a registry's host": r"(pypi|pythonhosted|anaconda|npmjs|download\.pytorch)\.(or[g]|co[m])",
    "a path of someone's machine": r"(?<![\w.])/(hom[e]|roo[t]|wor[k]|User[s])/\w",
}
# file -> the pattern it may use, with the reason
ALLOWED_TEXT = {
    ("requirements/bootstrap.sh", "a registry's host")
}  # the default source of the CPU build of torch

# file -> broad handlers that do not end in `raise`: to fan out to independent parts, or to pass a failure on.
BROAD_EXCEPTS: dict[str, int] = {
    "largeforge_ray/observe/trackers.py": 1,  # a tracker that fails is off, and the training goes on
    "largeforge_ray/teach/asking.py": 1,  # what ends a batch goes to the driver as a row, in its own words
    "largeforge_ray/train/background.py": 1,  # the failure of a thread, raised again in the caller's
    "serve_apps/router.py": 1,  # a fault of ours is a 500 in OpenAI's shape, and its trace is in the log
    "serve_apps/vllm_engine.py": 1,  # vLLM's own server maps whatever its handlers raise to a reply
}

# file -> private modules and attributes of others it may name, each for want of a public one.
PRIVATE_NAMES: dict[str, set[str]] = {
    "actors/ray_messages.py": {"ray._private"},  # who prints Ray's messages into a driver's output
}
GUARDED = ("ray", "trl", "vllm", "peft", "transformers")


@pytest.mark.parametrize("what", FORBIDDEN)
def test_forbidden_text(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    report(
        [
            f"{name(path)}:{number}: {what}: {line.strip()}"
            for path in text_files()
            if (name(path), what) not in ALLOWED_TEXT
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if pattern.search(line)
        ]
    )


def test_broad_excepts_are_counted() -> None:
    found: Counter[str] = Counter()
    for path in sources(*PACKAGES, "benchmarks"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node):
                found[name(path)] += 1
    assert found == Counter(BROAD_EXCEPTS), "name the exception, or count it in BROAD_EXCEPTS with its reason"


def _is_broad(handler: ast.ExceptHandler) -> bool:
    """It catches everything and can end without raising."""
    if isinstance(handler.body[-1], ast.Raise):
        return False
    if handler.type is None:
        return True
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(ast.unparse(each) in ("Exception", "BaseException") for each in caught)


def test_private_modules_of_others_are_counted() -> None:
    found: dict[str, set[str]] = {}
    for path in sources(*PACKAGES):
        used = {each.target for each in imports(path)} | {chain for chain, _ in attribute_chains(path)}
        private = {_private_part(target) for target in used if target.split(".")[0] in GUARDED} - {""}
        if private:
            found[name(path)] = private
    assert found == PRIVATE_NAMES, "use the public name, or list it in PRIVATE_NAMES with its reason"


def _private_part(target: str) -> str:
    """``ray._private.state.x`` -> ``ray._private``; empty when all of it is public."""
    parts = target.split(".")
    for number, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            return ".".join(parts[: number + 1])
    return ""


def test_top_level_holds_nothing_else() -> None:
    ignored = set(ignored_patterns())
    present = {path.relative_to(ROOT).parts[0] for path in files()}
    assert present <= TOP_LEVEL | ignored, f"unexpected at the top level: {sorted(present - TOP_LEVEL)}"


def test_every_test_file_is_in_a_ring() -> None:
    rings = ("unit", "contracts", "local_ray", "gpu")
    strays = [
        name(p) for p in files(".py", under="tests") if p.name.startswith("test_") and p.parts[-2] == "tests"
    ]
    assert strays == [], f"move them under tests/{{{','.join(rings)}}}"

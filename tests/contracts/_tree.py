"""What the contract tests read: the files of the tree, their syntax trees and their imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("largeforge_ray", "actors", "serve_apps", "train_jobs")
ROOMS = (
    *("config", "store", "models", "data", "train", "sweep", "teach", "distill", "quantize"),
    *("evaluate", "routing", "promote", "redteam", "flow", "observe"),
)
TEXT_SUFFIXES = (".py", ".yaml", ".yml", ".md", ".toml", ".sh", ".txt", ".in", ".j2", ".html", ".jsonl")


@cache
def ignored_patterns() -> tuple[str, ...]:
    lines = (ROOT / ".gitignore").read_text().splitlines()
    return (".git", *(line.strip("/") for line in lines if line and not line.startswith("#")))


def is_ignored(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any(fnmatch(part, pattern) for part in parts for pattern in ignored_patterns())


@cache
def files(*suffixes: str, under: str = ".") -> tuple[Path, ...]:
    """Every file that would be committed, with one of these suffixes (any when none is given)."""
    found = []
    for entry in sorted((ROOT / under).iterdir()) if (ROOT / under).is_dir() else []:
        if is_ignored(entry):
            continue
        if entry.is_dir():
            found.extend(files(*suffixes, under=str(entry.relative_to(ROOT))))
        elif not suffixes or entry.suffix in suffixes:
            found.append(entry)
    return tuple(found)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in files(".py", under=folder)]


def text_files() -> list[Path]:
    return [path for path in files() if path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run")]


def name(path: Path) -> str:
    """A path as tests and messages show it."""
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@dataclass(frozen=True)
class Import:
    """``target`` is absolute: for ``from a.b import c`` both ``a.b`` and ``a.b.c`` are given."""

    target: str
    line: int
    at_module_level: bool
    level: int = 0


def imports(path: Path) -> list[Import]:
    """Every import of a file but those only a type checker sees."""
    return list(_imports(parse(path), _package_of(path), at_module_level=True))


def _package_of(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).parent.parts)


def _imports(node: ast.AST, package: list[str], *, at_module_level: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, at_module_level)
        elif isinstance(child, ast.ImportFrom):
            yield from _from_import(child, package, at_module_level)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), package, at_module_level=at_module_level)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(child, package, at_module_level=at_module_level and not inside)


def _from_import(node: ast.ImportFrom, package: list[str], at_module_level: bool) -> Iterator[Import]:
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    yield Import(module, node.lineno, at_module_level, node.level)
    for alias in node.names:
        yield Import(f"{module}.{alias.name}", node.lineno, at_module_level, node.level)


def attribute_chains(path: Path) -> Iterator[tuple[str, int]]:
    """``ray.data.range`` and the like, as dotted text with its line."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", text := ast.unparse(node)):
            yield text, node.lineno


def within(target: str, module: str) -> bool:
    return target == module or target.startswith(f"{module}.")


def report(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)

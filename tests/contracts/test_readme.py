"""Every command we show in a ```bash block can be typed: program, target, module, option and file exist."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts._tree import ROOT, files, name

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *files(".md", under="docs")]
PROGRAMS = {
    *("make", "largeforge", "python", "pip", "git", "ray", "serve", "curl", "docker", "kubectl", "helm"),
    *("cd", "cp", "du", "export", "head", "mkdir", "rm", "source", "tar", "cat", "ls", "aws"),
    *("requirements/bootstrap.sh", ".ci/run"),
}
OURS = (
    "largeforge_ray",
    "actors",
    "serve_apps",
    "train_jobs",
    "cluster",
    "tests",
    "benchmarks",
    "docs",
    "requirements",
)
NAMES_A_FILE = re.compile(rf"({'|'.join(OURS)}|\.ci)/[\w./-]*")


def commands(page: Path) -> Iterator[list[str]]:
    """Of every ```bash block of a page, as ``commands_in`` has them."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    for block in re.findall(r"^[ ]*```bash\n(.*?)^[ ]*```", text, re.MULTILINE | re.DOTALL):
        yield from commands_in(block)


def commands_in(block: str) -> Iterator[list[str]]:
    """The words of each simple command, without assignments, prompts, here-documents and redirections."""
    block = re.sub(r"<<-?\s*'?(\w+)'?(.*?)\n.*?^\s*\1$", r"\2", block, flags=re.MULTILINE | re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True  # so that only these characters and spaces end a word
        yield from _split(list(lexer))


def _split(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word and set(word) <= set(";|&()"):
            if command:
                yield command
            command = []
        elif command or not re.match(r"\w+=", word):
            command.append(word)


ALL = [(page, command) for page in PAGES for command in commands(page)]
SHOWN = pytest.mark.parametrize(
    ("page", "command"), ALL, ids=[f"{name(page)}: {' '.join(command)}" for page, command in ALL]
)


def test_the_readme_shows_how_to_start() -> None:
    shown = [command for page, command in ALL if page.name == "README.md"]
    assert ["make", "quickstart"] in shown


@SHOWN
def test_a_shown_command_can_be_typed(page: Path, command: list[str]) -> None:
    program = command[0].removeprefix("./").removeprefix(".venv/bin/")
    assert program in PROGRAMS, f"{command[0]} is no program this page may expect"
    for word in command:
        path = word.partition("::")[0].removeprefix("./")
        if NAMES_A_FILE.fullmatch(path):
            assert (ROOT / path).exists(), f"{path} does not exist"
    if program == "make":
        check_make(command[1:])
    elif program == "python" and command[1:2] == ["-m"]:
        check_module(command[2])
    elif program == "largeforge":
        check_largeforge(command[1:])


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = [word for word in words if not word.startswith("-") and "=" not in word]
    assert set(asked) <= targets, f"the Makefile has no target {set(asked) - targets}"


def check_module(module: str) -> None:
    if module.split(".")[0] in OURS:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), f"no module {module}"
    else:
        assert importlib.util.find_spec(module.split(".")[0]), f"no module {module}"


def check_largeforge(words: list[str]) -> None:
    """Walks the command tree: each subcommand and each option must be there; values are not looked at."""
    import click

    command = importlib.import_module("train_jobs.cli").cli
    context = click.Context(command, info_name="largeforge")
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            break  # what follows is another program's
        if word.startswith("-"):
            position += _takes_value(command, word)
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word)
            assert inner is not None, f"{context.command_path} has no command {word}"
            command, context = inner, click.Context(inner, info_name=word, parent=context)
    if isinstance(command, click.Group) and words:
        assert command.invoke_without_command or words[-1].startswith("-"), (
            f"{' '.join(words)}: a command is missing"
        )


def _takes_value(command, word: str) -> bool:
    """Whether the next word belongs to this option; fails when the command has no such option."""
    option, _, value = word.partition("=")
    if option in ("--help", "--version"):
        return False
    options = {text: each for each in command.params for text in (*each.opts, *each.secondary_opts)}
    assert option in options, f"{command.name} has no option {option}"
    return not value and not options[option].is_flag

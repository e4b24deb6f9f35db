"""The pages say what is so: links lead somewhere, YAML is valid, commands parse and are known to work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from largeforge_ray.config import Stage, parse_manifest
from largeforge_ray.config.reference import render
from largeforge_ray.config.tasks import TaskEntry
from largeforge_ray.models import Hardware
from serve_apps.forge import parse_args
from tests.contracts._tree import ROOT, files, name
from tests.contracts.test_readme import ALL, OURS, PAGES, commands_in

LINKED = [*PAGES, ROOT / "cluster/README.md", ROOT / "benchmarks/RESULTS.md"]
TUTORIAL = ROOT / "docs/tutorial.md"
SHIPPED = ROOT / "train_jobs/manifests"
MARK = re.compile(r"<!-- needs a (cluster|cloud|network|GPU) -->")

# How a command begins -> the test file that runs it, and what it says there.
RUN_BY = {
    "largeforge compare": ("tests/unit/test_eval_command.py", '"compare"'),
    "largeforge doctor": ("tests/unit/test_cli.py", '"doctor"'),
    "largeforge eval": ("tests/local_ray/test_evaluation.py", '"eval"'),
    "largeforge experts": ("tests/unit/test_access_commands.py", '"experts"'),
    "largeforge keys": ("tests/unit/test_access_commands.py", '"keys"'),
    "largeforge lineage": ("tests/local_ray/test_loop.py", '"lineage"'),
    "largeforge plan": ("tests/local_ray/test_loop.py", '"plan"'),
    "largeforge replay": ("tests/unit/test_eval_replay.py", "replay("),
    "largeforge report": ("tests/unit/test_cli.py", '"report"'),
    "largeforge run": ("tests/local_ray/test_loop.py", '"run"'),
    "largeforge serve": ("tests/local_ray/test_serving.py", '"serve"'),
    "largeforge show": ("tests/unit/test_cli.py", '"show"'),
    "largeforge submit": ("tests/local_ray/test_submit.py", "submit("),
    "largeforge top": ("tests/local_ray/test_submit.py", '"top"'),
    "python -m train_jobs.": ("tests/unit/test_cli.py", '"train_jobs.run"'),
    "ray start": ("tests/local_ray/test_jobs.py", '"start"'),
    "ray job submit": ("tests/local_ray/test_jobs.py", '"submit"'),
    "serve deploy": ("tests/local_ray/test_cluster_serving.py", '"deploy"'),
    "serve run": ("tests/local_ray/test_serve_engines.py", '"serve_apps.forge:app"'),
    "make lint": (".ci/run", "make lint"),
    "make test": (".ci/run", "make test"),
    "make sbom": ("tests/contracts/test_sbom.py", "bill("),
    "make docs": ("tests/contracts/test_docs.py", "render("),
    "make help": ("tests/contracts/test_sbom.py", '"help"'),
    "make quickstart": ("tests/local_ray/conftest.py", "quickstart.yaml"),
}
# How a command begins that no test runs -> why.
NOT_RUN = {
    **dict.fromkeys(("make lock", "make audit"), "asks the package index"),
    "pip install": "asks the package index",
    "ray get-auth-token": "writes into the home folder",
    "curl http://127.0.0.1": "a client of the router, which tests ask through openai",
    "curl -i http://127.0.0.1": "a client of the router, which tests ask through openai",
    **dict.fromkeys(
        ("cd ", "cp ", "du ", "export ", "head ", "mkdir ", "rm ", "source ", "tar "), "a shell's"
    ),
}


@dataclass(frozen=True)
class Block:
    """A fenced block: the page and line where it begins, its language and its text."""

    page: Path
    line: int
    language: str
    text: str
    marked: bool

    @property
    def id(self) -> str:
        return f"{name(self.page)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: int | None = None
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        before = lines[opened - 1] if opened else ""
        text = "\n".join(lines[opened + 1 : number]) + "\n"
        yield Block(page, opened + 1, lines[opened].lstrip()[3:], text, bool(MARK.fullmatch(before.strip())))
        opened = None


BLOCKS = [block for page in PAGES for block in blocks(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]
YAML = [block for block in BLOCKS if block.language == "yaml"]
WHOLE = [block for block in YAML if re.search(r"^stages:", block.text, re.MULTILINE)]


def test_the_reference_is_what_the_schemas_say() -> None:
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == render(), "run: make docs"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {path.name for path in files(".md", under="docs")} - {"README.md"}
    assert pages <= set(re.findall(r"\(([\w-]+\.md)\)", index))


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_a_link_leads_to_a_file_and_a_heading_that_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} leads to no file"
        assert not anchor or anchor in anchors(there), f"{target}: {name(there)} has no such heading"


def without_code(page: Path) -> str:
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(page: Path) -> set[str]:
    """Of its headings as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_file_that_is_named_exists(page: Path) -> None:
    for path in re.findall(rf"`((?:{'|'.join(OURS)})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), f"{path} does not exist"


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.id)
def test_yaml_is_valid(block: Block) -> None:
    value = yaml.safe_load(block.text)
    if block in WHOLE:
        assert parse_manifest(block.text).stages
    elif isinstance(value, list):
        for each in value:
            TypeAdapter(Stage if "kind" in each else TaskEntry).validate_python(each)
    else:
        assert {*value} <= {"speculation", "engines"}, "no schema of ours reads this; show it as text"
        parse_args(**value)


@pytest.mark.parametrize("block", WHOLE, ids=lambda block: block.id)
def test_a_manifest_can_be_planned(block: Block, home: Path) -> None:
    from largeforge_ray.flow import make_plan
    from largeforge_ray.store import open_store

    assert make_plan(parse_manifest(block.text), open_store(home / "forge"), home).missing


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the shipped rows, one file of them as a reader of the tutorial has it."""
    for rows in SHIPPED.glob("*.jsonl"):
        shutil.copy(rows, tmp_path)
    shutil.copy(SHIPPED / "orders.jsonl", tmp_path / "mine.jsonl")
    monkeypatch.chdir(tmp_path)
    # What this machine has free just now is not the question.
    monkeypatch.setattr("largeforge_ray.models.detect", lambda _=None: Hardware(8, 0, 64.0, 100.0))
    return tmp_path


def test_the_plan_of_the_tutorial_is_what_it_shows(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from train_jobs.commands import show_plan

    page = {block.language: block.text for block in reversed([*blocks(TUTORIAL)])}
    (home / "expert.yaml").write_text(page["yaml"])
    show_plan(Path("expert.yaml"), None)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed[:-1] == page["text"].splitlines()[:-1]
    assert printed[-1].rpartition("/")[2] == page["text"].splitlines()[-1].rpartition("/")[2]


def test_the_error_of_the_how_to_is_what_a_reader_sees(home: Path) -> None:
    from largeforge_ray.data import ingest
    from largeforge_ray.errors import DataError

    with (home / "mine.jsonl").open("a") as file:
        file.write('{"promt": "Order", "answer": 1}\n')
    with pytest.raises(DataError) as caught:
        ingest(Path("mine.jsonl"), test_share=0.2, target=home)
    assert f"error: {caught.value}\n" in (ROOT / "docs/howto.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", BASH, ids=lambda block: block.id)
def test_a_command_is_run_by_a_test_or_says_what_it_needs(block: Block) -> None:
    if block.marked:
        return
    for line in command_lines(block):
        known = [*RUN_BY, *NOT_RUN]
        assert any(line.startswith(each) for each in known), (
            f"'{line}': name the test that runs it in RUN_BY, say in NOT_RUN why none does, or put "
            "<!-- needs a cluster -->, a cloud, a network or a GPU right before the block"
        )


def command_lines(block: Block) -> Iterator[str]:
    for words in commands_in(block.text):
        yield " ".join([words[0].removeprefix("./").removeprefix(".venv/bin/"), *words[1:]])


@pytest.mark.parametrize("beginning", RUN_BY)
def test_the_test_that_runs_a_command_is_there(beginning: str) -> None:
    path, said = RUN_BY[beginning]
    assert said in (ROOT / path).read_text(encoding="utf-8")


LARGEFORGE = sorted(
    {" ".join(words[1:]): words[1:] for _, words in ALL if words[0].endswith("largeforge")}.values()
)


@pytest.mark.parametrize("words", LARGEFORGE, ids=" ".join)
def test_a_largeforge_command_parses_with_its_values(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By click itself, with nothing behind any command."""
    from train_jobs.cli import cli

    for command in every_command(cli):
        monkeypatch.setattr(command, "callback", None)
    cli.main(words, standalone_mode=False)


def every_command(command: Any) -> Iterator[Any]:
    yield command
    for inner in getattr(command, "commands", {}).values():
        yield from every_command(inner)


OPTIONS = [
    (words, word) for _, words in ALL if words[1:2] == ["-m"] for word in words[3:] if word[:2] == "--"
]


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_a_module_has_the_option_that_it_is_given(words: list[str], option: str) -> None:
    path = ROOT / words[2].replace(".", "/")
    text = path.with_suffix(".py").read_text(encoding="utf-8")
    if "from train_jobs.training import main" in text:
        text = (ROOT / "train_jobs/training.py").read_text(encoding="utf-8")
    assert f'"{option}"' in text, f"{words[2]} has no {option}"

"""The lock, the declared dependencies, the version and the shipped packages agree."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contracts._tree import PACKAGES, ROOT, name, sources

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _pins(file: str) -> list[list[str]]:
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    return [line.split("==") for line in lines if re.match(r"[\w-]+==", line)]


LOCK = dict([*_pins("cpu.txt"), *_pins("source.txt")])
EXTRAS = PROJECT["optional-dependencies"]
IN_THE_LOCK = [*PROJECT["dependencies"], *EXTRAS["cpu"], *EXTRAS["s3"], *EXTRAS["test"]]


@pytest.mark.parametrize("text", IN_THE_LOCK)
def test_the_lock_satisfies_what_is_declared(text: str) -> None:
    wanted = Requirement(text)
    pinned = LOCK.get(canonicalize_name(wanted.name))
    assert pinned, (
        f"{wanted.name} is declared but not in requirements/cpu.txt; add it to cpu.in and run make lock"
    )
    assert wanted.specifier.contains(pinned), f"{text} excludes the locked {pinned}"


def test_overrides_stay_out_of_the_lock() -> None:
    overrides = (ROOT / "requirements/overrides.txt").read_text()
    left_out = re.findall(r"^([\w-]+) ; sys_platform == 'never'$", overrides, re.MULTILINE)
    assert left_out
    # What the resolver leaves out because it is published as source has a list of its own.
    assert not set(left_out) & {name for name, _ in _pins("cpu.txt")}


def test_version_is_written_once() -> None:
    import largeforge_ray

    assert re.fullmatch(r"\d+\.\d+\.\d+", largeforge_ray.__version__)
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT


def test_every_shipped_folder_is_a_package() -> None:
    folders = {path.parent for path in sources(*PACKAGES)}
    missing = sorted(name(folder) for folder in folders if not (folder / "__init__.py").exists())
    assert missing == [], "without an __init__.py the wheel leaves these out"
    assert {folder.relative_to(ROOT).parts[0] for folder in folders} == set(PACKAGES)


def test_library_types_are_shipped() -> None:
    assert (ROOT / "largeforge_ray/py.typed").exists(), (
        "without py.typed a user's type checker ignores our hints"
    )

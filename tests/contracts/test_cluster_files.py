"""Each file of cluster/ is listed, fits its schema, and names what there is."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contracts._cluster import FOLDER, STAGES, WORKDIR
from tests.contracts._tree import PACKAGES, ROOT, files, name

RAY_UP = sorted(FOLDER.glob("*.yaml"))
EACH_RAY_UP = pytest.mark.parametrize("path", RAY_UP, ids=name)
EACH_TARGET = pytest.mark.parametrize("target", ["cpu", "gpu"])
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TEXTS = [path for path in files(under="cluster") if path.suffix != ".json"]
IGNORED = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_table_lists_every_file_and_no_other() -> None:
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert all(text == link for text, link in rows)
    listed = [text for text, _ in rows]
    there = {path.relative_to(FOLDER).as_posix() for path in files(under="cluster")} - {"README.md"}
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_a_file_names_modules_and_files_that_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert importlib.util.find_spec(module), module
    folders = "|".join((*PACKAGES, "cluster", "docs", "requirements", "tests"))
    for named in re.findall(rf"(?<![\w./])(?:{re.escape(WORKDIR)}/)?((?:{folders})/[\w./-]*\w)", text):
        assert (ROOT / named).exists(), named


@EACH_RAY_UP
def test_ray_takes_a_ray_up_file(path: Path) -> None:
    from ray.autoscaler._private.util import validate_config

    # What Ray itself puts in before it looks.
    validate_config({"cluster_synced_files": [], "max_workers": 0, **read(path)})


@EACH_RAY_UP
def test_every_node_asks_for_the_token_that_it_is_given(path: Path) -> None:
    config = read(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    starts = [
        command
        for part in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config[part]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token " in command for command in starts)


@EACH_RAY_UP
def test_stores_keys_and_environments_of_this_machine_are_not_copied_to_the_nodes(path: Path) -> None:
    assert read(path)["rsync_exclude"] == [".venv", ".git", "forge"]


@pytest.mark.parametrize("path", [FOLDER / "aws.yaml", FOLDER / "gcp.yaml"], ids=name)
def test_a_cloud_cluster_has_a_head_that_runs_nothing_and_gpu_workers_that_come_by_demand(path: Path) -> None:
    config = read(path)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    (gpu,) = [each for key, each in types.items() if key != config["head_node_type"]]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])
    assert gpu["resources"]["GPU"] > 0
    asked = re.findall(r"--entrypoint-resources '\{\"(\w+)\"", path.read_text())
    assert asked == [resource for resource in gpu["resources"] if resource not in ("CPU", "GPU")]


def installs() -> dict[str, str]:
    """How a GPU node is installed, by the file that says so."""
    found = {name(FOLDER / "Dockerfile"): " ".join(text for _, text in STAGES["gpu"].steps)}
    for file in ("aws.yaml", "gcp.yaml"):
        found[file] = " ".join(read(FOLDER / file)["worker_setup_commands"])
    return found


def test_gpu_nodes_get_the_locked_versions_but_of_what_the_lock_has_otherwise() -> None:
    left_out = {
        re.search(r"grep -vE '([^']+)' +requirements/cpu.txt", text).group(1) for text in installs().values()
    }
    (pattern,) = left_out
    lock = (ROOT / "requirements/cpu.txt").read_text().splitlines()
    names = re.fullmatch(r"\^\((.+)\)==", pattern).group(1).split("|")
    assert all(any(re.match(f"{each}==", line) for line in lock) for each in names)
    kept = [line for line in lock if "==" in line and not re.match(pattern, line)]
    assert not [line for line in kept if "+cpu" in line], "a build for the CPU would be forced on GPU nodes"


@pytest.mark.parametrize("file", installs())
def test_gpu_nodes_get_extras_that_are_declared(file: str) -> None:
    extras = re.search(r'-e "\.\[([\w,]+)\]"', installs()[file]).group(1).split(",")
    assert "gpu" in extras
    assert set(extras) <= EXTRAS.keys()


@EACH_TARGET
def test_an_image_starts_from_a_pinned_python_that_the_project_supports(target: str) -> None:
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", STAGES[target].image)
    assert STAGES[target].image == STAGES["base"].image, "Ray wants the same Python on every node"


@EACH_TARGET
def test_an_image_runs_as_a_user_that_is_not_root(target: str) -> None:
    assert STAGES[target].last("USER") == "1000:1000"
    assert STAGES[target].steps[-1][0] == "CMD"


@EACH_TARGET
def test_an_image_copies_what_is_there_and_has_all_packages(target: str) -> None:
    copied = [text.split()[:-1] for instruction, text in STAGES[target].steps if instruction == "COPY"]
    sources = {source for each in copied for source in each if not source.startswith("--")}
    assert all((ROOT / source).exists() for source in sources)
    assert set(PACKAGES) <= sources
    assert all(any(allowed == f"!{Path(source).parts[0]}" for allowed in IGNORED) for source in sources)


def test_a_build_sees_nothing_that_is_not_listed() -> None:
    lines = [line for line in IGNORED if not line.startswith("#")]
    assert lines[0] == "*"
    seen = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert not [
        each for each in seen if any(fnmatch(each, hidden) for hidden in (".*", "forge", "keys*", "admin*"))
    ]


def test_the_image_finds_its_own_environment_first() -> None:
    paths = [text for instruction, text in STAGES["base"].steps if instruction == "ENV"]
    assert any(f"PATH={WORKDIR}/.venv/bin:" in text for text in paths)

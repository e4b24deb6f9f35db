"""Every YAML we ship is a test case."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import json
import re
from pathlib import Path

import pytest
import yaml

from tests.contracts._tree import files, name

ALL = files(".yaml", ".yml")
MANIFESTS = files(".yaml", ".yml", under="train_jobs/manifests")
SERVE = [path for path in files(".yaml", ".yml", under="serve_apps") if "applications" in path.read_text()]
CLUSTER = files(".yaml", ".yml", under="cluster")
RAY_UP = [path for path in CLUSTER if re.search(r"^cluster_name:", path.read_text(), re.MULTILINE)]
DOCUMENTATION = [ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets a second key of the same name silently win; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        assert not twice, f"keys given twice{node.start_mark}: {', '.join(sorted(twice))}"
        return super().construct_mapping(node, deep)


@pytest.mark.parametrize("path", ALL, ids=name)
def test_yaml_parses_into_mappings_without_repeated_keys(path: Path) -> None:
    documents = list(yaml.load_all(path.read_text(encoding="utf-8"), UniqueKeyLoader))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_manifests_are_valid(path: Path) -> None:
    from largeforge_ray.config import load_manifest

    assert load_manifest(path).stages


@pytest.mark.parametrize("path", MANIFESTS, ids=name)
def test_manifests_can_be_planned(path: Path, tmp_path: Path) -> None:
    from largeforge_ray.config import load_manifest
    from largeforge_ray.flow import make_plan
    from largeforge_ray.store import open_store

    assert make_plan(load_manifest(path), open_store(tmp_path), path.parent).missing


def test_a_manifest_is_shipped() -> None:
    assert MANIFESTS, "train_jobs/manifests holds no manifest, so `largeforge quickstart` has nothing to run"


@pytest.mark.parametrize("path", SERVE, ids=name)
def test_serve_configs_are_valid_and_name_what_exists(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert str(config.http_options.host) in ("127.0.0.1", "localhost"), (
        "Serve listens on loopback unless asked"
    )
    for application in config.applications:
        module, _, attribute = application.import_path.partition(":")
        assert hasattr(importlib.import_module(module), attribute), application.import_path


@pytest.mark.parametrize("path", RAY_UP, ids=name)
def test_ray_up_configs_are_valid_and_keep_the_dashboard_on_loopback(path: Path) -> None:
    import jsonschema

    ray_folder = Path(importlib.util.find_spec("ray").origin).parent
    config = yaml.safe_load(path.read_text())
    jsonschema.validate(config, json.loads((ray_folder / "autoscaler" / "ray-schema.json").read_text()))
    heads = [line for line in config.get("head_start_ray_commands", []) if "ray start --head" in line]
    assert heads
    assert all("--dashboard-host=127.0.0.1" in line for line in heads)


@pytest.mark.parametrize("path", CLUSTER, ids=name)
def test_cluster_files_name_their_kind_and_no_real_address(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if "apiVersion" in document:
            assert document.get("kind"), "a Kubernetes object has a kind"
            assert document["metadata"].get("name"), "a Kubernetes object has a name"
    for text in re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", path.read_text()):
        address = ipaddress.ip_address(text)
        assert (
            address.is_loopback or address.is_unspecified or any(address in net for net in DOCUMENTATION)
        ), text

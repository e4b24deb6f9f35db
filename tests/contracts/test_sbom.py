"""What is known of the dependencies: the bill of materials, and the targets that make and audit it."""

from __future__ import annotations

import importlib.util
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.contracts._tree import ROOT
from tests.contracts.test_packaging import LOCK


@pytest.fixture(scope="module")
def sbom() -> Any:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "requirements/sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bill(sbom: Any) -> dict[str, Any]:
    return sbom.bill(sbom.locked(), datetime(2026, 1, 1, tzinfo=UTC))


def test_every_locked_package_is_listed_once_with_its_version(bill: dict[str, Any]) -> None:
    listed = [(each["name"], each["version"]) for each in bill["components"]]
    assert len(listed) == len(LOCK)
    assert {name.lower().replace("_", "-"): version for name, version in LOCK.items()} == dict(listed)
    assert all(each["purl"].startswith(f"pkg:pypi/{each['name']}@") for each in bill["components"])


def test_licences_and_digests_are_there_for_what_is_installed(bill: dict[str, Any]) -> None:
    found = {each["name"]: each for each in bill["components"]}
    assert found["ray"]["licenses"] == [{"license": {"name": "Apache 2.0"}}]
    assert found["accelerate"]["licenses"]
    without = sorted(name for name, each in found.items() if not each.get("licenses"))
    assert without == ["openai-harmony", "tiktoken", "word2number"], "their metadata names none in a line"
    assert all(len(each["properties"][0]["value"]) == 64 for each in found.values())


def test_each_needs_only_what_is_listed(bill: dict[str, Any]) -> None:
    refs = {each["bom-ref"] for each in bill["components"]}
    needs = {each["ref"]: set(each["dependsOn"]) for each in bill["dependencies"]}
    assert needs.keys() == {*refs, "largeforge-ray"}
    assert set().union(*needs.values()) <= refs
    assert any(ref.startswith("pkg:pypi/ray@") for ref in needs["largeforge-ray"])


def test_another_version_than_the_locked_one_ends_it_with_the_fix(sbom: Any) -> None:
    with pytest.raises(SystemExit, match=r"error: ray 2\.\S+ is installed and 0\.1 is locked; run: make"):
        sbom.bill({"ray": "0.1"}, datetime.now(UTC))


def test_the_targets_are_listed_and_the_audit_reads_both_locks() -> None:
    def make(*words: str) -> str:
        return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert all(f"make {target} " in make("help") for target in ("audit", "docs", "sbom"))
    audited = make("--dry-run", "audit")
    assert "requirements/cpu.txt requirements/source.txt >build/audit.txt" in audited
    assert "pip-audit --strict" in audited

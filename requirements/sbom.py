"""The software bill of materials of the CPU environment: CycloneDX 1.6, as JSON, on standard output.

python requirements/sbom.py > build/sbom.cdx.json

Every package of cpu.txt and source.txt with its version and purl; from what is installed its licence, what it
needs of the others, and a digest of its files. Licences are the packages' own words. It looks nothing up:
whether a version has known vulnerabilities is `make audit`'s question.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
LOCKS = ("cpu.txt", "source.txt")
OURS = "largeforge-ray"
WRITTEN_BY_PIP = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
DIGEST = "largeforge:files:sha256"
"""Of names and hashes of the files that a package brought: equal on two machines if its files are. It is no
hash of the archive they came in, which nothing keeps."""
LONGEST_NAME = 80
"""Characters; in some packages' licence field stands the whole text."""


def locked() -> dict[str, str]:
    """Version by canonical name."""
    lines = "\n".join((HERE / name).read_text(encoding="utf-8") for name in LOCKS)
    return {canonicalize_name(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", lines, re.MULTILINE)}


def bill(packages: dict[str, str], now: datetime) -> dict[str, Any]:
    """The whole document. Exits with a message if another version is installed than is locked."""
    installed = {name: _installed(name, version) for name, version in packages.items()}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": now.isoformat(timespec="seconds"),
            "component": {"type": "application", "bom-ref": OURS, "name": OURS, **_own_version()},
        },
        "components": [_component(name, packages[name], installed[name]) for name in packages],
        "dependencies": [
            {"ref": OURS, "dependsOn": _needs(_distribution(OURS), packages)},
            *({"ref": _purl(n, packages[n]), "dependsOn": _needs(installed[n], packages)} for n in packages),
        ],
    }


def _own_version() -> dict[str, str]:
    ours = _distribution(OURS)
    return {"version": ours.version} if ours else {}


def _distribution(name: str) -> Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except PackageNotFoundError:
        return None


def _installed(name: str, version: str) -> Distribution | None:
    found = _distribution(name)
    if found is not None and found.version != version:
        sys.exit(f"error: {name} {found.version} is installed and {version} is locked; run: make")
    return found


def _component(name: str, version: str, found: Distribution | None) -> dict[str, Any]:
    purl = _purl(name, version)
    made = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if found is None:
        return made
    digest = {"properties": [{"name": DIGEST, "value": _digest(found)}]} if found.files else {}
    return made | ({"licenses": licences} if (licences := _licences(found)) else {}) | digest


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def _licences(found: Distribution) -> list[dict[str, Any]]:
    """The SPDX expression where there is one, else the licence's name, else those among the classifiers."""
    about = found.metadata
    if expression := about.get("License-Expression"):
        return [{"expression": expression}]
    named = (about.get("License") or "").strip()
    if named and named != "UNKNOWN" and len(named) <= LONGEST_NAME and "\n" not in named:
        return [{"license": {"name": named}}]
    classified = [c for c in about.get_all("Classifier") or [] if c.startswith("License :: ")]
    return [{"license": {"name": each.rpartition(" :: ")[2]}} for each in classified]


def _needs(found: Distribution | None, packages: dict[str, str]) -> list[str]:
    """Of the locked packages those that it asks for here, without extras."""
    wanted = [Requirement(line) for line in (found.requires if found else None) or []]
    here = {canonicalize_name(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
    return sorted(_purl(name, packages[name]) for name in here & packages.keys())


def _digest(found: Distribution) -> str:
    files = sorted(
        f"{file}={file.hash.value}"
        for file in found.files or []
        # Scripts outside the package hold this machine's path to the interpreter.
        if file.hash is not None and file.parts[0] != ".." and file.name not in WRITTEN_BY_PIP
    )
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


if __name__ == "__main__":
    json.dump(bill(locked(), datetime.now(UTC)), sys.stdout, indent=1)
    sys.stdout.write("\n")

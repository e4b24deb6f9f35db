"""What the tests of cluster/ read: Kubernetes objects, the fields they may have, pods, and the Dockerfile."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.contracts._tree import ROOT, files

FOLDER = ROOT / "cluster"
FIELDS = json.loads((Path(__file__).parent / "schemas/kubernetes.json").read_text(encoding="utf-8"))
PLAIN: dict[str, dict[str, Any]] = {
    "any": {},
    "int-or-string": {"type": ["integer", "string"]},
    **{name: {"type": name} for name in ("string", "integer", "number", "boolean")},
}
Found = dict[str, Any]
"""A mapping as YAML has it."""


def _schema_of(field: str) -> dict[str, Any]:
    """JSON Schema of a type as schemas/kubernetes.json writes it."""
    if field in PLAIN:
        return PLAIN[field]
    if field.startswith("["):
        return {"type": "array", "items": _schema_of(field[1:-1])}
    if field.startswith("{"):
        return {"type": "object", "additionalProperties": _schema_of(field[1:-1])}
    if field.startswith("'"):
        return {"enum": [text.strip("'") for text in field.split("|")]}
    return {"$ref": f"#/$defs/{field}"}


def _object(fields: dict[str, str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name.rstrip("!"): _schema_of(field) for name, field in fields.items()},
        "required": [name[:-1] for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


@cache
def _definitions() -> dict[str, Any]:
    return {name: _object(fields) for name, fields in FIELDS["objects"].items()}


def check_fields(value: Any, kind: str) -> None:
    """Raise ``jsonschema.ValidationError``, which names the place, unless the value is of this kind."""
    validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": _definitions()})
    error = jsonschema.exceptions.best_match(validator.iter_errors(value))
    if error is not None:
        raise error


@dataclass(frozen=True)
class Object:
    """One document of a Kubernetes file."""

    path: Path
    body: Found

    @property
    def kind(self) -> str:
        return str(self.body["kind"])

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.path.name}: {self.kind} {self.name}"


OBJECTS = [
    Object(path, body)
    for path in files(".yaml", under="cluster/kubernetes")
    for body in yaml.safe_load_all(path.read_text(encoding="utf-8"))
]


def of_kind(*kinds: str) -> list[Object]:
    return [each for each in OBJECTS if each.kind in kinds]


def cluster_spec(each: Object) -> Found:
    """The Ray cluster of a RayCluster or RayService."""
    spec = each.body["spec"]
    return dict(spec["rayClusterConfig"] if each.kind == "RayService" else spec)


@dataclass(frozen=True)
class Pod:
    """A pod template and who makes it. ``extra`` are containers that the operator puts beside those listed,
    ``claims`` the volumes that are claimed anew for each pod."""

    owner: str
    template: Found
    group: Found
    extra: tuple[Found, ...] = ()
    claims: tuple[str, ...] = ()

    @property
    def spec(self) -> Found:
        return dict(self.template["spec"])

    @property
    def main(self) -> Found:
        return dict(self.spec["containers"][0])

    @property
    def containers(self) -> list[Found]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"], *self.extra]

    def __str__(self) -> str:
        return self.owner


def pods() -> Iterator[Pod]:
    for each in of_kind("RayCluster", "RayService"):
        spec = cluster_spec(each)
        head = spec["headGroupSpec"]
        scaler = {"name": "autoscaler", **spec["autoscalerOptions"]}
        yield Pod(f"{each.name} head", head["template"], head, (scaler,))
        for group in spec["workerGroupSpecs"]:
            yield Pod(f"{each.name} {group['groupName']}", group["template"], group)
    for each in of_kind("StatefulSet"):
        spec = each.body["spec"]
        claims = tuple(claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"])
        yield Pod(each.name, spec["template"], spec, claims=claims)


PODS = list(pods())


@dataclass(frozen=True)
class Stage:
    """One ``FROM`` of the Dockerfile with all that it runs, its parents' instructions first."""

    image: str
    steps: tuple[tuple[str, str], ...]

    def last(self, instruction: str) -> str:
        return [text for name, text in self.steps if name == instruction][-1]


def stages(text: str) -> dict[str, Stage]:
    """A Dockerfile's stages by name."""
    found: dict[str, Stage] = {}
    defaults: dict[str, str] = {}
    name = ""
    for line in re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "ARG":
            key, _, value = rest.partition("=")
            defaults[key] = value
        elif instruction == "FROM":
            parent, _, name = shlex.split(rest)
            parent = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], parent)
            found[name] = found.get(parent, Stage(parent, ()))
        elif instruction:
            found[name] = Stage(found[name].image, (*found[name].steps, (instruction, rest.strip())))
    return found


STAGES = stages((FOLDER / "Dockerfile").read_text(encoding="utf-8"))
WORKDIR = STAGES["gpu"].last("WORKDIR")


def in_tree(path: str) -> Path:
    """Where a file of the image lies in this tree."""
    return ROOT / Path(path).relative_to(WORKDIR)

"""The reference of every field a manifest may have, as Markdown, from the schemas alone.

python -m largeforge_ray.config.reference > docs/reference.md

A field's words are its ``description``, a schema's are its docstring: what is missing there is missing here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import yaml
from pydantic import TypeAdapter

from largeforge_ray.config.base import Name, Ref, Strict
from largeforge_ray.config.load import NAMED, STAGES
from largeforge_ray.config.manifest import Manifest

Schema: TypeAlias = dict[str, Any]
HEAD = """# Reference

Every field of a manifest, its type and its default, made from the schemas by `make docs`. The
[guide](manifest.md) says what they are for. A section's title ends with the `kind` of a stage or a
speculation, or the `name` of any other, that asks for it. A whole number is not taken for text nor text for a
number, and an unknown field is an error.
"""
GROUPS: dict[str, Mapping[str, type[Strict]]] = {"stages": STAGES, **NAMED}
"""Fields that are one of several schemas; each has a chapter, and a section for each of its schemas."""
EXTENDS = {"SweepStage": "TrainStage"}
"""A schema whose fields begin with all those of another."""
WORDS = {"integer": "whole number", "number": "number", "boolean": "`true` or `false`", "string": "text"}
PATTERNS = {
    TypeAdapter(Ref).json_schema()["pattern"]: "a stage",
    TypeAdapter(Name).json_schema()["pattern"]: "a name",
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def render() -> str:
    """The whole page."""
    whole = Manifest.model_json_schema()
    page = _Page(whole["$defs"])
    return "\n".join([HEAD, *page.section("## ", "The manifest", whole), *page.chapters()])


class _Page:
    """``defs`` are the JSON schemas by the names of their classes."""

    def __init__(self, defs: Mapping[str, Schema]) -> None:
        self._defs = defs
        self._titles = {name: name for name in defs}
        self._group: dict[str, str] = {}
        for group, members in GROUPS.items():
            for schema in members.values():
                named = ", ".join(name for name, other in members.items() if other is schema)
                self._titles[schema.__name__] = f"{group.removesuffix('s')} {named}"
                self._group[schema.__name__] = group

    def chapters(self) -> Iterator[str]:
        """One for each group, and one of the schemas that stand in a field of their own."""
        for group, members in GROUPS.items():
            yield f"## {group}\n"
            for name in dict.fromkeys(schema.__name__ for schema in members.values()):
                yield from self.section("### ", self._titles[name], self._defs[name])
        yield "## Parts\n"
        for name in (each for each in self._defs if each not in self._group):
            yield from self.section("### ", name, self._defs[name])

    def section(self, level: str, title: str, schema: Schema) -> Iterator[str]:
        """A heading, the docstring, and a table of the fields that may have more than one value."""
        yield f"{level}{title}\n"
        yield _plain(schema["description"]) + "\n"
        fields = {name: spec for name, spec in schema.get("properties", {}).items() if "const" not in spec}
        if base := EXTENDS.get(schema["title"]):
            yield f"All of [{self._titles[base]}](#{_anchor(self._titles[base])}), and:\n"
            fields = {f: spec for f, spec in fields.items() if f not in self._defs[base]["properties"]}
        if fields:
            yield "| field | type | default | |\n|---|---|---|---|"
            yield from (self._row(name, spec) for name, spec in fields.items())
            yield ""

    def _row(self, name: str, spec: Schema) -> str:
        what = self._type(spec)
        if spec.get("default") is not None and any(s.get("type") == "null" for s in spec.get("anyOf", ())):
            what += " or `null`"
        told = _plain(spec.get("description", ""))
        return " | ".join([f"| `{name}`", what, self._default(spec), f"{told} |".lstrip()])

    def _type(self, spec: Schema) -> str:
        if "$ref" in spec:
            title = self._titles[_target(spec)]
            return f"[{title}](#{_anchor(title)})"
        if options := spec.get("oneOf") or spec.get("anyOf"):
            return self._one_of([option for option in options if option.get("type") != "null"])
        if "const" in spec or "enum" in spec:
            return ", ".join(f"`{value}`" for value in spec.get("enum", [spec.get("const")]))
        if spec.get("type") == "array":
            return f"list of {self._type(spec['items'])}"
        if spec.get("type") == "object":
            values = spec.get("additionalProperties") or next(iter(spec["patternProperties"].values()))
            return f"mapping to {self._type(values)}"
        word = PATTERNS.get(spec.get("pattern", ""), WORDS.get(spec.get("type", ""), "value"))
        bounds = ", ".join(f"{sign} {spec[bound]:g}" for bound, sign in BOUNDS.items() if bound in spec)
        return f"{word} {bounds}".strip()

    def _one_of(self, options: list[Schema]) -> str:
        groups = {self._group.get(_target(option)) for option in options}
        [group, *others] = groups
        if len(options) > 1 and group is not None and not others:
            return f"[{group.removesuffix('s')}](#{group})"
        return " or ".join(self._type(option) for option in options)

    def _default(self, spec: Schema) -> str:
        if "default" not in spec:
            return "required"
        value = spec["default"]
        if isinstance(value, dict) and value == self._own_defaults(spec):
            return "its own"
        if isinstance(value, dict | list):
            value = yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False).strip()
        return f"`{value if isinstance(value, str) else json.dumps(value)}`"

    def _own_defaults(self, spec: Schema) -> Schema | None:
        """Of the one schema that the field may hold, None if there are several."""
        found = [_target(each) for each in [spec, *spec.get("anyOf", ())] if "$ref" in each]
        if len(found) != 1:
            return None
        fields = self._defs[found[0]]["properties"]
        return {name: each.get("default") for name, each in fields.items()}


def _target(spec: Schema) -> str:
    return str(spec.get("$ref", "")).rpartition("/")[2]


def _anchor(title: str) -> str:
    return title.lower().replace(",", "").replace(" ", "-")


def _plain(text: str) -> str:
    """A docstring as a line a paragraph, with Markdown's code marks, fit for a cell of a table."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraphs).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())

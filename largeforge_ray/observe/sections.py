"""What a page of measurements says, before it is HTML or Markdown: sections of tables, pictures and items."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from largeforge_ray.observe.svg import Figure


@dataclass(frozen=True, slots=True)
class Cell:
    """``details`` are lines below the text; ``warmth`` 0 to 100 shades a cell of a heat map."""

    text: str
    details: tuple[str, ...] = ()
    best: bool = False
    warmth: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The first column heads its rows; columns in ``left`` hold words, the others numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: tuple[int, ...] = ()
    folded: bool = False

    @property
    def heat(self) -> bool:
        return any(cell.warmth is not None for row in self.rows for cell in row)


@dataclass(frozen=True, slots=True)
class Said:
    """A sentence; ``tone`` is empty, absent (why nothing is here) or warning."""

    kind: ClassVar[str] = "said"
    text: str
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """Left out of Markdown: its numbers are in a table beside it."""

    kind: ClassVar[str] = "picture"
    figure: Figure
    caption: str


@dataclass(frozen=True, slots=True)
class Item:
    """One item with each expert's (name, answer, quality 0 to 1)."""

    kind: ClassVar[str] = "item"
    item_id: str
    task: str
    prompt: str | None
    answers: tuple[tuple[str, str, float], ...]


Block = Table | Said | Picture | Item


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    title: str
    blocks: tuple[Block, ...]


def markdown(title: str, lead: str, about: Mapping[str, str], sections: Iterable[Section]) -> str:
    """The page as CommonMark with GitHub's tables; texts of models cannot become markup in it."""
    lines = [f"# {escaped(title)}", "", escaped(lead), ""]
    lines += [f"- {escaped(name)}: {escaped(value)}" for name, value in about.items()]
    for section in sections:
        lines += ["", f"## {escaped(section.title)}"]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """In one line, with everything that Markdown or HTML would read as markup made harmless."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|\[\]#])", r"\\\1", flat)


def _block(block: Block) -> list[str]:
    if isinstance(block, Said):
        return ["", escaped(block.text)]
    if isinstance(block, Table):
        return ["", f"{escaped(block.caption)}", "", *_table(block)]
    if isinstance(block, Item):
        asked = [] if block.prompt is None else _fenced(block.prompt)
        lines = ["", f"### {escaped(block.item_id)} ({escaped(block.task)})", *asked]
        for expert, answer, quality in block.answers:
            lines += ["", f"{escaped(expert)}, quality {quality:.4g}:", *_fenced(answer)]
        return lines
    return []


def _table(table: Table) -> list[str]:
    words = {0, *table.left}
    rule = [":---" if column in words else "---:" for column in range(len(table.head))]
    return [_row(map(escaped, table.head)), _row(rule), *(_row(map(_cell, row)) for row in table.rows)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)
    return ", ".join([text, *map(escaped, cell.details)])


def _fenced(text: str) -> Sequence[str]:
    """A code block with a fence that the text does not contain."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["", fence + "text", *text.splitlines(), fence]

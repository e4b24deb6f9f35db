"""How an evaluation's numbers stand in a table: cells, intervals, and rows with a column for each expert."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from largeforge_ray.observe.sections import Cell, Table
from largeforge_ray.observe.words import count, percent, signed_points

ALL_TASKS = "all"
NOTHING = Cell("–")
Summary = Mapping[str, Any]


def by_expert(
    caption: str,
    corner: str,
    experts: Sequence[str],
    rows: Iterable[tuple[Cell, Mapping[str, Any]]],
    cell: Callable[[Any], Cell],
    *,
    folded: bool = False,
) -> Table:
    """A row for each name and what it found, with a column for each expert; what is None is a dash."""
    made = tuple(
        (name, *(NOTHING if (one := found.get(e)) is None else cell(one) for e in experts))
        for name, found in rows
    )
    return Table(caption, (corner, *experts), made, folded=folded)


def task_name(name: str) -> str:
    return "all tasks" if name == ALL_TASKS else name


def accuracy(one: Summary) -> Cell:
    interval = (span(one),) if one.get("low") is not None else ()
    return Cell(percent(one["accuracy"]), (*interval, n_items(one["n"])))


def share(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(percent(value))


def number(value: float | None) -> Cell:
    return NOTHING if value is None else Cell(f"{value:,.4g}" if abs(value) < 10_000 else count(value))


def span(one: Summary) -> str:
    return f"[{one['low'] * 100:.1f}, {one['high'] * 100:.1f}]"


def signed_span(one: Summary) -> str:
    return f"[{signed_points(one['low'])}, {signed_points(one['high'])}]"


def p_value(value: float) -> str:
    return f"{value:.2g}" if value >= 0.0001 else "< 0.0001"


def shared_count(found: Mapping[str, Any]) -> tuple[tuple[str, ...], Callable[[Summary], tuple[str, ...]]]:
    """The number of items for the head of a row if all its cells have the same, else for each cell."""
    numbers = {one["n"] for one in found.values()}
    if len(numbers) == 1:
        return (n_items(numbers.pop()),), lambda one: ()
    return (), lambda one: (n_items(one["n"]),)


def n_items(number: int) -> str:
    """Never broken between the two."""
    return f"n\u00a0{count(number)}"

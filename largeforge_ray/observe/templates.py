"""The templates of the pages, and what they do to a text or a number."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from markupsafe import Markup

from largeforge_ray.observe import words
from largeforge_ray.observe.metrics import unit_of
from largeforge_ray.observe.svg import clip

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_CHARACTERS = 1500
"""Shown of a prompt or an answer; the rest is counted."""
FOLDED_CHARACTERS = 120
"""Shown of a long text that is folded."""


def environment() -> Environment:
    """Templates of this folder, escaped, with the report's filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("largeforge_ray.observe", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "duration": words.duration,
        "moment": words.moment,
        "percent": words.percent,
        "points": words.signed_points,
        "number": words.count,
        "confidence": words.confidence,
        "unit": unit_of,
        "shortened": shortened,
        "breakable": breakable,
        "opening": partial(clip, most=FOLDED_CHARACTERS),
    }
    return made


def breakable(text: Markup) -> Markup:
    """Names may break after an underscore, before a browser breaks them anywhere."""
    return text.replace("_", Markup("_<wbr>"))


def shortened(text: str) -> str:
    """The text, or its beginning with how much is left out."""
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}… ({len(text) - MOST_CHARACTERS:,} more characters)"

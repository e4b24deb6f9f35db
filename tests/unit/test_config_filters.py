"""Filters in a manifest: each by name or with its fields, and one message for what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from largeforge_ray.config.filters import FILTERS, Charset, Contamination, Filter, Language, Refusal

ONE: TypeAdapter[Any] = TypeAdapter(Filter)


def refusal(value: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        ONE.validate_python(value)
    return "; ".join(error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize("name", sorted(set(FILTERS) - {"length", "contamination"}))
def test_a_name_alone_takes_the_defaults(name: str) -> None:
    assert ONE.validate_python(name) == FILTERS[name](name=name)
    assert ONE.validate_python(ONE.dump_python(FILTERS[name](), mode="json")) == FILTERS[name]()


def test_lists_of_one_may_be_written_without_brackets() -> None:
    assert ONE.validate_python({"name": "charset", "scripts": "han"}) == Charset(scripts=["han"])
    assert ONE.validate_python({"name": "language", "languages": "de"}) == Language(languages=["de"])
    found = ONE.validate_python({"name": "contamination", "against": "prompts.test"})
    assert found == Contamination(against=["prompts.test"])
    assert ONE.validate_python({"name": "refusal"}) == Refusal()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("length", "length bounds nothing; give min_words, max_words or both"),
        ({"name": "length", "min_words": 9, "max_words": 3}, "break the rule min_words <= max_words"),
        ({"name": "length", "min_words": "3"}, "valid integer"),
        ({"name": "length", "max_words": 0}, "greater than or equal to 1"),
        ({"name": "charset", "scripts": ["latn"]}, "'latn' is not a Unicode script .*did you mean 'latin'"),
        ({"name": "charset", "scripts": []}, "at least 1 item"),
        ({"name": "charset", "min_share": 0.0}, "greater than 0"),
        ({"name": "language", "languages": ["en", "xx"]}, "'xx' is not an ISO 639 code such as en"),
        ({"name": "language", "languages": ["zxx"]}, "'zxx' is not an ISO 639 code"),
        ({"name": "language", "confidence": 1.0}, "less than 1"),
        ({"name": "refusal", "phrases": ["no"]}, "[Ee]xtra inputs"),
        ({"name": "repetition", "n": 0}, "greater than or equal to 1"),
        ({"name": "repetition", "max_share": 1.0}, "less than 1"),
        ({"name": "duplicate", "threshold": 0.99}, "less than or equal to 0.95"),
        ({"name": "pii", "action": "mask"}, "'scrub' or 'drop'"),
        ({"name": "pii", "kinds": ["name"]}, "'email', 'iban', 'card', 'ip' or 'phone'"),
        ({"name": "pii", "kinds": []}, "at least 1 item"),
        ({"name": "pii", "regions": ["UK"]}, "'UK' is not an ISO 3166 code such as US, GB"),
        ("contamination", "[Ff]ield required"),
        ({"name": "contamination", "against": []}, "at least 1 item"),
        ({"name": "contamination", "against": ["a.b.c"]}, "match pattern"),
        ({"name": "contamination", "against": "a", "max_overlap": 1.0}, "less than 1"),
        ("profanity", "does not match any of the expected tags"),
    ],
)
def test_a_bad_filter_is_refused_with_its_rule(value: Any, message: str) -> None:
    import re

    assert re.search(message, refusal(value)), refusal(value)

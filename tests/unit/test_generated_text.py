"""Text as it comes, token by token: nothing is taken back, and nothing of a stop string leaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.generated_text import GeneratedText
from tests.unit.test_chat_mask import CHATML, tokenizer_with

BYTES = st.lists(st.text(alphabet="ab<é😀", min_size=1, max_size=12)).map("".join)


def of_bytes(ids: list[int]) -> str:
    """Every byte a token: the hardest case for characters of several bytes."""
    return bytes(ids).decode("utf-8", "replace")


def told(text: str, stop: list[str], prompt: bytes = b"") -> tuple[str, bool]:
    """What is given out of ``text``, and whether a stop string ended it."""
    growing, out = GeneratedText(of_bytes, prompt, stop), ""
    for byte in text.encode():
        new, stopped = growing.add(byte)
        out += new
        if stopped:
            return out, True
        assert not any(each in out for each in stop)
    return out + growing.rest(), False


@given(BYTES)
def test_without_stop_strings_all_of_the_text_is_given_out(text: str) -> None:
    assert told(text, []) == (text, False)


@given(BYTES, st.lists(st.text(alphabet="ab<é", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    ends = [at + len(each) for each in stop if (at := text.find(each)) >= 0]
    out, stopped = told(text, stop)
    assert stopped == bool(ends)
    if stopped:  # the stop string that is complete first, where it begins
        assert any(text.startswith(out + each) for each in stop)
        assert not any(each in out for each in stop)
        assert len(out) < min(ends)
    else:
        assert out == text


def test_what_may_become_a_stop_string_waits_and_comes_when_it_does_not() -> None:
    growing = GeneratedText(of_bytes, b"", ["<end>"])
    assert [growing.add(byte)[0] for byte in b"a<e<en."] == ["a", "", "", "<e", "", "", "<en."]
    assert growing.rest() == ""


def test_bytes_that_never_become_a_character_are_left_out() -> None:
    growing = GeneratedText(of_bytes, b"", [])
    assert [growing.add(byte)[0] for byte in "é😀".encode()[:-1]] == ["", "é", "", "", ""]
    assert growing.rest() == ""


@pytest.mark.parametrize("text", ["Größe? 😀🚀 東京", " to  Tallinn, twelve lanterns\n"])
def test_a_real_tokenizers_pieces_join_to_its_text(text: str) -> None:
    tokenizer: Any = tokenizer_with(CHATML)
    prompt = tokenizer("<|im_start|>assistant\n")["input_ids"]
    growing = GeneratedText(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), prompt, [])
    assert "".join(growing.add(token)[0] for token in tokenizer(text)["input_ids"]) == text

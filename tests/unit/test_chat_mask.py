"""What a chat teaches: only the assistant's words and the token that ends its turn, with a real tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from largeforge_ray.data import render_chat
from largeforge_ray.data.chat import IGNORED
from largeforge_ray.errors import DataError

END = "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As SmolLM2's: a chat without a system turn gets one.
WITH_DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}" + CHATML
)
# As Qwen3's: reasoning is shown in the last turn and taken out of it once another follows.
REWRITING = CHATML.replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['role'] == 'assistant' %}<think>{% endif %}{{ m['content'] }}",
)
NO_TURN_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

Chat = list[dict[str, str]]


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "You answer in JSON."}
ORDER = user("Ship 12 lanterns to Tallinn, the customer is Ingrid.")
JSON = assistant('{"name": "Ingrid", "count": 12, "item": "lanterns", "city": "Tallinn"}')
CHATS: dict[str, Chat] = {
    "one turn": [ORDER, JSON],
    "system turn": [SYSTEM, ORDER, JSON],
    "several turns": [SYSTEM, ORDER, JSON, user("And in French?"), assistant("Oui."), user("So?"), JSON],
    "last turn is the user's": [ORDER, JSON, user("Thank you!")],
    "two answers in a row": [ORDER, JSON, assistant("Anything else?")],
    "more than ASCII": [user("Größe? \U0001f600"), assistant("Ünïcode: 東京 \U0001f600\U0001f680 é")],
    "words of the template": [user("say assistant"), assistant("assistant\nassistant user\nsystem")],
    "an answer of nothing but its end": [ORDER, assistant("")],
}


def tokenizer_with(template: str) -> Any:
    """A byte-level BPE trained on a few lines, wrapped as the models' own tokenizers are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", END]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [turn["content"] for chat in CHATS.values() for turn in chat]
    raw.train_from_iterator([*texts, "system\n user\n assistant\n\n"] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, pad_token=special[0])
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def chatml() -> Any:
    return tokenizer_with(CHATML)


def by_characters(tokenizer: Any, messages: Chat) -> tuple[list[int], list[int]]:
    """Ids and labels of ChatML computed from character spans, without rendering any prefix."""
    text, spans = "", []
    for turn in messages:
        text += f"<|im_start|>{turn['role']}\n"
        start = len(text)
        text += turn["content"] + END
        if turn["role"] == "assistant":
            spans.append((start, len(text)))
        text += "\n"
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, labels = encoded["input_ids"], []
    for token, (start, end) in zip(ids, encoded["offset_mapping"], strict=True):
        learned = any(first <= start and end <= last for first, last in spans)
        labels.append(token if learned else IGNORED)
    return ids, labels


def learned_text(tokenizer: Any, row: dict[str, list[int]]) -> str:
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


@pytest.mark.parametrize("name", CHATS)
def test_exactly_the_assistants_tokens_are_learned(chatml: Any, name: str) -> None:
    messages = CHATS[name]
    row = render_chat(chatml, messages, max_tokens=1000)
    assert row is not None
    ids, labels = by_characters(chatml, messages)
    assert row == {"input_ids": ids, "labels": labels}
    said = [turn["content"] + END for turn in messages if turn["role"] == "assistant"]
    assert learned_text(chatml, row) == "".join(said)
    end = chatml.eos_token_id
    assert row["labels"].count(end) == len(said)
    assert row["input_ids"].count(end) == len(messages)


def test_the_newline_that_the_template_writes_after_a_turn_is_not_learned(chatml: Any) -> None:
    row = render_chat(chatml, CHATS["one turn"], max_tokens=1000)
    assert chatml.decode(row["input_ids"][-1:]) == "\n"
    assert row["labels"][-2:] == [chatml.eos_token_id, IGNORED]


TEXT = st.text('ab {}":é東\U0001f600\n<|>', max_size=12).map(str.strip)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.booleans())
@settings(deadline=None, max_examples=50)
def test_any_chat_is_masked_as_the_character_spans_say(
    chatml: Any, pairs: list[tuple[str, str]], system: bool
) -> None:
    messages = [SYSTEM] * system
    for question, answer in pairs:
        messages += [user(question), assistant(answer)]
    ids, labels = by_characters(chatml, messages)
    assert render_chat(chatml, messages, max_tokens=1000) == {"input_ids": ids, "labels": labels}


def test_a_row_of_just_the_limit_is_kept_and_a_longer_one_is_left_out_whole(chatml: Any) -> None:
    messages = CHATS["several turns"]
    length = len(by_characters(chatml, messages)[0])
    row = render_chat(chatml, messages, max_tokens=length)
    assert row is not None
    assert len(row["input_ids"]) == len(row["labels"]) == length
    assert render_chat(chatml, messages, max_tokens=length - 1) is None


def test_a_system_turn_that_the_template_adds_is_not_learned() -> None:
    tokenizer = tokenizer_with(WITH_DEFAULT_SYSTEM)
    row = render_chat(tokenizer, CHATS["several turns"][1:], max_tokens=1000)
    assert "Be helpful." in tokenizer.decode(row["input_ids"])
    assert learned_text(tokenizer, row) == f"{JSON['content']}{END}Oui.{END}{JSON['content']}{END}"


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    tokenizer = tokenizer_with(REWRITING)
    with pytest.raises(DataError, match=r"renders earlier turns differently .*; use another template"):
        render_chat(tokenizer, CHATS["several turns"], max_tokens=1000)


def test_without_an_end_token_in_the_template_the_turn_ends_with_its_text() -> None:
    tokenizer = tokenizer_with(NO_TURN_END)
    row = render_chat(tokenizer, [user("So?"), assistant("Oui."), user("So?")], max_tokens=1000)
    assert learned_text(tokenizer, row).strip() == "Oui."


@pytest.mark.parametrize("messages", [[], [ORDER], [SYSTEM, ORDER]])
def test_a_chat_without_an_answer_is_refused(chatml: Any, messages: Chat) -> None:
    with pytest.raises(DataError, match="teaches nothing; add an answer or drop the row"):
        render_chat(chatml, messages, max_tokens=1000)

"""Chat templates for training: a chat's beginning has to read the same whatever follows it."""

from __future__ import annotations

from typing import Any

PROBE = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


def use_training_template(tokenizer: Any) -> bool:
    """Give ``tokenizer`` TRL's training version of its template if its own rewrites earlier turns.

    Qwen3's, for one, drops the reasoning of every turn but the last, so no mask can be placed on
    them. Returns whether it was replaced; a template TRL does not know stays, and the rows that need
    another are refused when they are rendered. Source: ``trl.chat_template_utils``, TRL 1.16.0.
    """
    if _keeps_turns(tokenizer):
        return False
    from trl.chat_template_utils import get_training_chat_template

    try:
        patched = get_training_chat_template(tokenizer)
    except ValueError:
        return False
    if patched is None:
        return False
    tokenizer.chat_template = patched
    return True


def _keeps_turns(tokenizer: Any) -> bool:
    whole = tokenizer.apply_chat_template(PROBE, tokenize=False)
    begun = tokenizer.apply_chat_template(PROBE[:2], tokenize=False)
    return bool(whole.startswith(begun))

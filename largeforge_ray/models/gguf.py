"""GGUF to a plain safetensors folder, once; read with transformers 5.17.0."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from largeforge_ray.errors import ModelError

TURN_END = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn in common chat templates, looked up in the template itself."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type numbers of GGUF metadata, as ``struct`` writes them; 8 is a string, 9 an array."""


def read_context(gguf: Path) -> int | None:
    """The context in tokens that the file's metadata states; None if it states none before its vocabulary."""
    return _stated(gguf, ".context_length")


def read_layers(gguf: Path) -> int | None:
    """The number of layers that the file's metadata states; None if it states none before its vocabulary."""
    return _stated(gguf, ".block_count")


def _stated(gguf: Path, ending: str) -> int | None:
    """The number under the first name with this ending.

    Only what stands before the vocabulary is read, a few hundred bytes. A damaged file fails when it is
    converted. Format: GGUF 2 and 3, ggml's docs/gguf.md.
    """
    with gguf.open("rb") as file, suppress(struct.error, KeyError):
        magic, _, _, fields = struct.unpack("<4sIQQ", file.read(24))
        for _ in range(fields if magic == b"GGUF" else 0):
            name = _text(file)
            if name.startswith("tokenizer."):
                break
            value = _value(file, _number(file, "I"))
            if name.endswith(ending):
                return int(value)
    return None


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _text(file)
    if kind == 9:
        item = _number(file, "I")
        return [_value(file, item) for _ in range(_number(file, "Q"))]
    return _number(file, SCALARS[kind])


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8", "replace")


def convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise ``gguf`` to bfloat16 safetensors with tokenizer and chat template in ``target``.

    The end-of-turn token of the chat template becomes EOS, otherwise generation never stops by
    itself. Raises ``ModelError`` if the file carries no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ModelError(f"{gguf.name} carries no chat template; use a chat model's GGUF")
    loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16)
    # The loaded model keeps a GGUF quantisation config and refuses to be saved: move its weights over.
    settings = loaded.config.to_dict()
    for stale in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        settings.pop(stale, None)
    end = next((t for t in TURN_END if t in tokenizer.chat_template), tokenizer.eos_token)
    end_id = tokenizer.convert_tokens_to_ids(end)
    tokenizer.eos_token = end
    tokenizer.pad_token = end
    config = type(loaded.config).from_dict(settings | {"eos_token_id": end_id, "pad_token_id": end_id})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=end_id, pad_token_id=end_id)
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))

"""GGUF to a plain safetensors folder, once; read with transformers 5.17.0."""

from __future__ import annotations

from pathlib import Path

from largeforge_ray.errors import ModelError

TURN_END = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Tokens that end a turn in common chat templates, looked up in the template itself."""


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

"""The frozen base in NF4 (read in bitsandbytes 0.50.2): QLoRA, Dettmers et al. 2023 (arXiv:2305.14314)."""

from __future__ import annotations

from typing import Any


def nf4(compute: Any) -> Any:
    """4-bit NormalFloat with double quantisation, computing in the dtype ``compute``."""
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def keep_for_training(model: Any) -> None:
    """Hold bitsandbytes back from laying weights out for inference on a CPU.

    It does so in the first forward pass in evaluation mode, for good, and later gradients are wrong.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False

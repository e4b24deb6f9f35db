"""An adapter added to its base's weights: in float32, compared with both, written in the base's dtype.

Merged and unmerged agree up to the order of sums. Rounding the result to the base's dtype is what a
merge costs, so that is measured, too. Merging itself is PEFT's, for LoRA, rsLoRA and DoRA alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.errors import StageError
from largeforge_ray.models.hardware import threads_per_worker
from largeforge_ray.train.quantized import nf4
from largeforge_ray.train.whole import copy_beside_weights
from largeforge_ray.types import Message

TOLERANCE = 1e-4
"""Of the largest logit. Float32 sums in another order differ by some 1e-6 of it a layer."""
TOKENS = 128

Tensor = Any


@dataclass(frozen=True, slots=True)
class MergeJob:
    """``adapter`` is added to ``base`` and written to ``target``; the three are folders.

    Both are compared on the first ``TOKENS`` tokens of each of ``chats``. ``nf4`` is the precision in
    which the adapter met a base rounded to NF4, None if it met the base as it is.
    """

    base: str
    adapter: str
    target: str
    chats: tuple[tuple[Message, ...], ...]
    nf4: str | None = None


def merge(job: MergeJob) -> dict[str, float]:
    """Write the merged model. Returns largest absolute differences in logits, and what they were measured on.

    ``merged`` is how far it is from base and adapter before it is rounded, ``written`` after, and
    ``from_base`` how far the adapter took it. Raises ``StageError`` if ``merged`` exceeds the tolerance
    or the adapter changes nothing.
    """
    import torch
    import transformers
    from peft import PeftModel

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads_per_worker(1))
    base, dtype = _load(job)
    ids = _encode(job)
    plain = _logits(base, ids)
    model: Any = PeftModel.from_pretrained(base, job.adapter)
    adapted = _logits(model, ids)
    merged = model.merge_and_unload(safe_merge=True)
    computed = _logits(merged, ids)
    figures = {
        "merged": _difference(computed, adapted),
        "from_base": _difference(computed, plain),
        "largest_logit": max(float(one.abs().max()) for one in adapted),
    }
    _judge(figures)
    figures["written"] = _difference(_logits(merged.to(dtype).float(), ids), adapted)
    _write(merged.to(dtype), Path(job.base), Path(job.target))
    return figures | {"chats": len(ids), "tokens": sum(map(len, ids))}


def _load(job: MergeJob) -> tuple[Any, Any]:
    """The base in float32, and the dtype it is kept in."""
    import torch
    import transformers

    kept = transformers.AutoConfig.from_pretrained(job.base).dtype or torch.float32
    options: dict[str, Any] = {"dtype": torch.float32}
    if job.nf4 is not None:
        options["dtype"] = getattr(torch, job.nf4)
        options["quantization_config"] = nf4(options["dtype"])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(job.base, use_safetensors=True, **options)
    if job.nf4 is not None:
        model = model.dequantize()
    return model.float().eval(), kept


def _encode(job: MergeJob) -> list[list[int]]:
    import transformers

    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(job.base)
    rendered = (tokenizer.apply_chat_template(list(chat), return_dict=False) for chat in job.chats)
    return [ids[:TOKENS] for ids in rendered]


def _logits(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """Of each sequence by itself, ``(tokens, vocabulary)``."""
    import torch

    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences]


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def _judge(figures: dict[str, float]) -> None:
    allowed = TOLERANCE * figures["largest_logit"]
    if not figures["merged"] <= allowed:
        raise StageError(
            f"merged logits differ from those of base and adapter by {figures['merged']:.2e}, more than "
            f"{allowed:.2e} ({TOLERANCE:g} of the largest); serve the adapter unmerged"
        )
    if figures["from_base"] <= allowed:
        raise StageError(
            f"the adapter changes nothing: with it logits differ by {figures['from_base']:.2e} from the "
            f"base's, no more than rounding ({allowed:.2e}); train with a higher learning_rate or more epochs"
        )


def _write(model: Any, base: Path, target: Path) -> None:
    """The weights, and beside them the base's own files: its configuration, tokenizer and chat template."""
    model.save_pretrained(target)
    copy_beside_weights(base, target)

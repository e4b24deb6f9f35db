"""A Llama of two layers with a tokenizer of its own: real training code in milliseconds."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

from largeforge_ray.config.training import TrainStage
from tests.unit.test_chat_mask import CHATML, tokenizer_with

WORDS = ["order", "ship", "lantern", "stool", "city", "Tallinn", "Vienna", "Ingrid", "twelve", "to", "the"]


@cache
def tiny_model(root: Path, head_dim: int = 8) -> Path:
    """A folder with the model and its tokenizer. vLLM's smallest kernel on a CPU is of heads of 32."""
    import torch
    import transformers

    tokenizer = tokenizer_with(CHATML)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    folder = root / "tiny"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def make_rows(form: str, number: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a dataset as they are read from it, of very different lengths."""
    rng = random.Random(seed)
    rows = []
    for i in range(number):
        prompt = [{"role": "user", "content": text(rng, rng.randint(1, 12))}]
        answers = [[{"role": "assistant", "content": text(rng, rng.randint(1, 20))}] for _ in range(2)]
        row: dict[str, Any] = {"item_id": str(i), "messages": prompt, "label": None}
        if form == "preference":
            row |= {"chosen": answers[0], "rejected": answers[1]}
        else:
            row |= {"messages": prompt + answers[0]}
        if form == "rationale":
            row |= {"rationale": answers[1][0]["content"]}
        if form == "unpaired":
            row |= {"label": i % 3 != 0}
        if form == "taught":
            row |= taught(i, rng.randint(1, 20))
        rows.append(row)
    return rows


def taught(seed: int, tokens: int, kept: int = 4, vocabulary: int = 300) -> dict[str, Any]:
    """What a made-up teacher kept of an answer of ``tokens`` ids, which may be unlikely ones."""
    import numpy as np

    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (tokens, vocabulary))
    logps = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    likeliest = np.argsort(-logps, 1)[:, :kept]
    top = np.take_along_axis(logps, likeliest, 1)
    return {
        "token_ids": rng.integers(3, vocabulary, tokens).tolist(),
        "topk_ids": likeliest.flatten().tolist(),
        "topk_logprobs": top.flatten().astype(np.float16),
        "tail_logprob": np.log1p(-np.exp(top).sum(1)).astype(np.float16),
    }


def stage_of(algorithm: Any, **settings: Any) -> TrainStage:
    given = {"name": "tuned", "kind": "train", "data": "rows", "algorithm": algorithm, "precision": "float32"}
    return TrainStage.model_validate(given | settings)


def table_of(model: Path, stage: TrainStage, rows: list[dict[str, Any]], file: Path) -> Any:
    """The rows as a token table on disk."""
    import pyarrow as pa

    from largeforge_ray.train.tokens import TokenSpec, TokenTable, encode_rows

    batch, left_out = encode_rows(rows, 0, TokenSpec(str(model), stage.algorithm, stage.max_tokens))
    assert not left_out
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return TokenTable(file)


def bench_of(model: Path, stage: TrainStage) -> Any:
    """A bench whose adapter differs from the base, as in the middle of a training."""
    import torch

    from largeforge_ray.train.bench import Bench

    bench = Bench(stage, str(model))
    bench.lane = lane = bench.add_lane(stage)
    generator = torch.Generator().manual_seed(1)
    lane.flat.data.add_(0.1 * torch.randn(lane.flat.shape, generator=generator))
    lane.publish()
    return bench

"""Training on Ray Train: one worker loop, one file per algorithm.

from largeforge_ray.train import TokenSpec, TrainJob, train, write_tokens

write_tokens(dataset, "train", TokenSpec(model_dir, stage.algorithm, 512), tokens, "train")
job = TrainJob(stage=stage, model_dir=model_dir, tokens_dir=str(tokens))
result = train(job, storage=address, target=adapter, on_note=print)   # resumes what a killed run left
result.losses, result.held_out                                       # and a PEFT folder in ``adapter``
"""

from __future__ import annotations

from largeforge_ray.train.background import run_beside
from largeforge_ray.train.build import train
from largeforge_ray.train.checkpoint import PRODUCT
from largeforge_ray.train.loop import TrainJob
from largeforge_ray.train.tokens import TokenSpec, write_tokens
from largeforge_ray.train.words import check_form, describe

__all__ = [
    "PRODUCT",
    "TokenSpec",
    "TrainJob",
    "check_form",
    "describe",
    "run_beside",
    "train",
    "write_tokens",
]

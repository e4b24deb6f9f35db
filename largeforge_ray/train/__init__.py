"""Training on Ray Train: one worker loop, one file per algorithm.

from largeforge_ray.train import TrainJob, train

job = TrainJob(stage=stage, model_dir=..., data=..., seed=0, ...)
result = train(job, storage=folder, on_note=print)   # resumes what a killed run left
result.adapter                                        # a PEFT folder
"""

from __future__ import annotations

from largeforge_ray.train.build import TrainResult, build_trainer, train
from largeforge_ray.train.loop import TrainJob

__all__ = ["TrainJob", "TrainResult", "build_trainer", "train"]

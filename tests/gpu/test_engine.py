"""The engine on a GPU, with the settings a GPU gets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from largeforge_ray.config import load_manifest
from largeforge_ray.models.hardware import detect, engine_args
from largeforge_ray.models.source import locate, materialise
from largeforge_ray.types import GenerateRequest, Sampling

pytestmark = [
    pytest.mark.skipif(detect().gpus == 0, reason="needs a GPU"),
    pytest.mark.timeout(600),
]
MANIFEST = Path(__file__).parents[2] / "train_jobs" / "manifests" / "quickstart.yaml"


def test_the_packaged_model_answers_on_a_gpu_and_stops_by_itself(tmp_path: Path) -> None:
    from largeforge_ray.models.engine import Engine

    materialise(locate(load_manifest(MANIFEST).model, MANIFEST.parent), tmp_path)
    assert "enforce_eager" not in engine_args(tmp_path, max_model_len=512)
    question = {"role": "user", "content": "What is the capital of France? Answer in one sentence."}

    async def ask():
        engine = Engine(str(tmp_path), max_model_len=512)
        try:
            return await engine.generate([GenerateRequest("1", (question,), Sampling(max_tokens=32))])
        finally:
            engine.shutdown()

    [answer] = asyncio.run(ask())
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"

"""Answers to prompts, drawn from the model as it is now: by an engine, or in the trainer's own process.

Both draw from the model's own distribution (temperature 1), which is what the gradient is of, and with
seeds that follow from the stage's seed, the step, the row and the answer's number. G answers of one prompt, T
tokens so far, V vocabulary.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from largeforge_ray.errors import StageError
from largeforge_ray.train.bench import Bench
from largeforge_ray.train.lora import save_adapter
from largeforge_ray.types import GenerateRequest, Generation, Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens, and a seed for each answer wanted; no seeds ask for the most likely answer."""

    ids: list[int]
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One drawn answer. ``ids`` end with the token that ends a turn, unless it was cut off (``finished``).

    ``logps`` are what the sampler found of each token, None if the trained model drew it itself.
    """

    ids: list[int]
    text: str
    finished: bool
    logps: list[float] | None = None


class Sampler(Protocol):
    """Where answers come from."""

    def draw(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """The answers to each prompt, the same on every worker. Every worker has to ask."""


class EngineSampler:
    """Answers by vLLM: the first worker hands the adapter to the engine's actor and asks it."""

    def __init__(self, bench: Bench, lane: Any, engine: Any) -> None:
        self._bench, self._lane, self._engine = bench, lane, engine

    def draw(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        import torch.distributed as dist

        weights = self._lane.weights()
        made: list[Any] = [None]
        if self._bench.rank == 0:
            made = [self._ask(prompts, weights)]
        if self._bench.workers > 1:
            dist.broadcast_object_list(made)
        answers: list[list[Answer]] = made[0]
        return answers

    def _ask(self, prompts: Sequence[Prompt], weights: dict[str, Any]) -> list[list[Answer]]:
        import ray

        with tempfile.TemporaryDirectory(prefix="largeforge-adapter-") as name:
            folder = Path(name)
            save_adapter(self._bench.model, self._lane.name, weights, folder)
            files = {p.name: p.read_bytes() for p in folder.iterdir()}
        adapter = ray.get(self._engine.put_adapter.remote(files))
        most = self._lane.stage.algorithm.max_new_tokens
        requests = [
            GenerateRequest(
                f"{Path(adapter).name}-{number}-{index}",
                (),
                Sampling(temperature=float(seed is not None), max_tokens=most, seed=seed),
                adapter,
                tuple(prompt.ids),
            )
            for number, prompt in enumerate(prompts)
            for index, seed in enumerate(prompt.seeds or (None,))
        ]
        generations = iter(ray.get(self._engine.generate.remote(requests)))
        return [[_answer(next(generations)) for _ in prompt.seeds or (None,)] for prompt in prompts]


def _answer(made: Generation) -> Answer:
    if made.error:
        raise StageError(f"the engine gave no answer to a prompt: {made.error}")
    return Answer(list(made.token_ids), made.text, made.finish_reason == "stop", list(made.logprobs))


class LocalSampler:
    """Answers by the model in training, where there is no engine: right, and slow."""

    def __init__(self, bench: Bench, lane: Any) -> None:
        import transformers

        self._bench, self._lane = bench, lane
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(bench.model_dir)

    def draw(self, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        import torch.distributed as dist

        rank, workers = self._bench.rank, self._bench.workers
        self._bench.model.eval()
        mine = [self._answers(prompt) for prompt in prompts[rank::workers]]
        self._bench.model.train()
        shares = [mine]
        if workers > 1:
            shares = [[] for _ in range(workers)]
            dist.all_gather_object(shares, mine)
        return [shares[i % workers][i // workers] for i in range(len(prompts))]

    def _answers(self, prompt: Prompt) -> list[Answer]:
        end = self._tokenizer.eos_token_id
        most = self._lane.stage.algorithm.max_new_tokens
        return [
            Answer(ids, self._tokenizer.decode(ids, skip_special_tokens=True), ids[-1] == end)
            for ids in sample(self._bench.model, prompt, most, end)
        ]


def sample(model: Any, prompt: Prompt, most: int, end: int) -> list[list[int]]:
    """Ids of the answers, each through its first ``end`` or ``most`` tokens long.

    A token is where a seeded uniform number falls in the distribution, so an answer depends on its own seed
    alone. It keeps no cache: answers of one prompt are equally long, so nothing is padded.
    """
    import numpy as np
    import torch

    device, start = next(model.parameters()).device, len(prompt.ids)
    ids_GT = torch.tensor([prompt.ids] * max(1, len(prompt.seeds)), device=device)
    drawn = [np.random.default_rng(seed).random(most) for seed in prompt.seeds]
    chance_GM = torch.tensor(np.array(drawn), device=device)
    ended_G = torch.zeros(len(ids_GT), dtype=torch.bool, device=device)
    with torch.no_grad():
        for place in range(most):
            logits_GV = model(input_ids=ids_GT, use_cache=False, logits_to_keep=1).logits[:, -1]
            if prompt.seeds:
                below_GV = logits_GV.double().softmax(-1).cumsum(-1)
                wanted_G1 = chance_GM[:, place, None] * below_GV[:, -1:]
                next_G1 = torch.searchsorted(below_GV, wanted_G1, right=True)
            else:
                next_G1 = logits_GV.argmax(-1, keepdim=True)
            ids_GT = torch.cat([ids_GT, next_G1], 1)
            ended_G |= next_G1[:, 0] == end
            if ended_G.all():
                break
    answers = [ids[start:] for ids in ids_GT.tolist()]
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]

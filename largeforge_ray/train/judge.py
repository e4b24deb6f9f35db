"""What an answer is worth: a row's own check, or a reward model in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from largeforge_ray.data.chat import chat_ids
from largeforge_ray.store import local_folder
from largeforge_ray.teach.verify import verify
from largeforge_ray.train.attention import register_attention
from largeforge_ray.train.batch import Encoded, collate
from largeforge_ray.train.reward import RewardObjective
from largeforge_ray.train.rollout import Answer
from largeforge_ray.train.template import use_training_template
from largeforge_ray.types import Message

AT_ONCE = 16

Judge = Callable[[Sequence[tuple[dict[str, Any], Answer]]], list[float]]
"""Rewards of answers to tasks; a task has ``messages``, ``check`` and ``answer``."""


def by_check(answers: Sequence[tuple[dict[str, Any], Answer]]) -> list[float]:
    """1 for what the check accepts, else 0; an answer that was cut off is 0 whatever it says."""
    return [
        float(answer.finished and verify(task["check"], answer.text, task["answer"]).kept)
        for task, answer in answers
    ]


class RewardModel:
    """The adapter and head of a stage with ``algorithm: reward``, on a base of its own."""

    def __init__(self, model_dir: str, adapter: str, precision: str, device: Any) -> None:
        import torch
        import transformers
        from peft import PeftModel

        model_dir, adapter = str(local_folder(model_dir)), str(local_folder(adapter))
        base: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
            model_dir,
            num_labels=1,
            use_safetensors=True,
            dtype=getattr(torch, precision),
            attn_implementation=register_attention(),
        )
        self._model = PeftModel.from_pretrained(base, adapter).eval().to(device)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model_dir)
        use_training_template(self._tokenizer)
        self._device, self._head = device, RewardObjective(None)

    def __call__(self, answers: Sequence[tuple[dict[str, Any], Answer]]) -> list[float]:
        return self.scores([(task["messages"], answer.text) for task, answer in answers])

    def scores(self, answers: Sequence[tuple[list[Message], str]]) -> list[float]:
        """Of each prompt's answer."""
        import torch

        chats = [self._chat(prompt, text) for prompt, text in answers]
        rewards: list[float] = []
        with torch.no_grad():
            for start in range(0, len(chats), AT_ONCE):
                batch = collate(chats[start : start + AT_ONCE], packed=True).to(self._device)
                rewards += self._head.forward(self._model, batch).tolist()
        return rewards

    def _chat(self, prompt: list[Message], text: str) -> Encoded:
        """The chat as the reward model learned to read it. Nothing is learned of it, so its answer may begin
        with what the tokenizer joins to the words before, where no mask could be placed."""
        ids = chat_ids(self._tokenizer, [*prompt, {"role": "assistant", "content": text}])
        return Encoded(ids, [False] * len(ids))

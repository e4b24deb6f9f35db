"""What an answer is worth: a row's own check, or a reward model in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from largeforge_ray.data.chat import render_chat
from largeforge_ray.teach.verify import verify
from largeforge_ray.train.attention import register_attention
from largeforge_ray.train.batch import Encoded, collate
from largeforge_ray.train.reward import RewardObjective
from largeforge_ray.train.rollout import Answer
from largeforge_ray.train.template import use_training_template

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
        import torch

        chats = [self._chat(task, answer) for task, answer in answers]
        rewards: list[float] = []
        with torch.no_grad():
            for start in range(0, len(chats), AT_ONCE):
                batch = collate(chats[start : start + AT_ONCE], packed=True).to(self._device)
                rewards += self._head.forward(self._model, batch).tolist()
        return rewards

    def _chat(self, task: dict[str, Any], answer: Answer) -> Encoded:
        """The chat as the reward model learned to read it."""
        turns = [*task["messages"], {"role": "assistant", "content": answer.text}]
        made = render_chat(self._tokenizer, turns, max_tokens=2**31, learn_from=len(task["messages"]))
        assert made is not None, "no chat is longer than that"
        return Encoded(made["input_ids"], [False] * len(made["input_ids"]))

"""A model that is read and not asked: its hidden states where it predicts the tokens of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largeforge_ray.data.chat import chat_ids
from largeforge_ray.store import local_folder
from largeforge_ray.types import Message

AT_ONCE = 8


class StateReader:
    """``layers`` are numbers from 0, ``adapter`` a PEFT folder or None. The state of the last layer is the
    one after the model's last norm (``hidden_states`` of transformers 5.17)."""

    def __init__(self, model_dir: str, adapter: str | None, layers: Sequence[int], device: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        folder = local_folder(model_dir)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, use_safetensors=True
        )
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, local_folder(adapter))
        self._model = model.eval().to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._layers, self._device = list(layers), device

    def states(self, asked: Sequence[tuple[Sequence[Message], Sequence[int]]]) -> list[Any]:
        """For each ``(what was asked, ids of the answer)`` float16 ``(tokens, layers, width)``, each state
        scaled to a mean square of 1, which float16 holds however large a model's states grow."""
        import torch

        made = []
        for start in range(0, len(asked), AT_ONCE):
            part = [
                (chat_ids(self._tokenizer, m, prompt=True), list(ids)) for m, ids in asked[start:][:AT_ONCE]
            ]
            longest = max(len(prompt) + len(answer) for prompt, answer in part)
            rows = [[*p, *a] + [0] * (longest - len(p) - len(a)) for p, a in part]
            mask = [[1] * (len(p) + len(a)) + [0] * (longest - len(p) - len(a)) for p, a in part]
            with torch.no_grad():
                found = self._model(
                    input_ids=torch.tensor(rows, device=self._device),
                    attention_mask=torch.tensor(mask, device=self._device),
                    output_hidden_states=True,
                    logits_to_keep=1,
                    use_cache=False,
                ).hidden_states
            for i, (prompt, answer) in enumerate(part):
                places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
                state_NLH = torch.stack([found[layer + 1][i, places] for layer in self._layers], 1)
                made.append(unit(state_NLH).half().cpu().numpy())
        return made


def unit(states: Any) -> Any:
    """States ``(..., width)`` scaled to a mean square of 1, in float32."""
    wide = states.float()
    return wide * wide.square().mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()

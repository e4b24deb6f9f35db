"""A causal language model in this process: transformers' own ``generate``, and PEFT adapters."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.models.adapters import Adapters
from largeforge_ray.models.hardware import detect, threads_per_worker
from serve_apps.generated_text import Finish, GeneratedText, Piece, TokenChance
from serve_apps.generation_request import Sampling


class TransformersModel:
    """One model that one thread at a time may use. Weights keep the precision they are stored in.

    Raises ``OSError`` or ``ValueError`` if transformers cannot load the folder.
    """

    def __init__(self, folder: Path) -> None:
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        device = detect().device
        if device == "cpu":
            # Ray leaves a worker as many threads as it has logical CPUs.
            torch.set_num_threads(threads_per_worker(1))
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", trust_remote_code=False
        ).to(device)
        self._model.eval()
        self._ends = _ends(self._tokenizer, self._model.generation_config)
        # The model's own defaults, such as a temperature, would apply to whoever names none.
        self._model.generation_config = transformers.GenerationConfig(
            eos_token_id=sorted(self._ends) or None,
            pad_token_id=self._tokenizer.pad_token_id or min(self._ends, default=0),
        )
        self.adapters = Adapters(self._model)

    def generate(
        self,
        ids: list[int],
        adapter: str | None,
        sampling: Sampling,
        tell: Callable[[Piece], None],
        left: Callable[[], bool],
    ) -> None:
        """Tell a piece for every token of every choice, one choice after the other, until ``left``."""
        import torch

        self.adapters.use(adapter)
        for index in range(sampling.n):
            if left():
                return
            seed = secrets.randbits(63) if sampling.seed is None else sampling.seed + index
            torch.manual_seed(seed)
            self._choice(index, ids, sampling, tell, left)

    def _choice(
        self,
        index: int,
        ids: list[int],
        sampling: Sampling,
        tell: Callable[[Piece], None],
        left: Callable[[], bool],
    ) -> None:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        watch = _Watch(index, self._tokenizer, self._ends, ids, sampling, tell, left)
        prompt_1T = torch.tensor([ids], device=self._model.device)
        self._model.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            max_new_tokens=sampling.max_tokens,
            stopping_criteria=StoppingCriteriaList([watch.stop]),
            logits_processor=LogitsProcessorList([watch.look] if sampling.logprobs is not None else []),
            **_drawing(sampling),
        )

    def log_probability(self, ids: list[int], token: int, adapter: str | None) -> float:
        """Of ``token`` after ``ids``. Raises ``ValueError`` for a token the model does not have."""
        import torch

        self.adapters.use(adapter)
        with torch.inference_mode():
            logits_V = self._model(torch.tensor([ids], device=self._model.device)).logits[0, -1].float()
        if not 0 <= token < len(logits_V):
            raise ValueError(f"token {token} is not one of the model's {len(logits_V)}")
        return float(logits_V.log_softmax(-1)[token])


class _Watch:
    """Sees each token of a choice as ``generate`` draws it, tells it on, and says when it was the last."""

    def __init__(
        self,
        index: int,
        tokenizer: Any,
        ends: frozenset[int],
        prompt_ids: Sequence[int],
        sampling: Sampling,
        tell: Callable[[Piece], None],
        left: Callable[[], bool],
    ) -> None:
        self._index, self._tokenizer, self._ends, self._sampling = index, tokenizer, ends, sampling
        self._tell, self._left, self._tokens, self._logps_V = tell, left, 0, None
        self._text = GeneratedText(
            lambda ids: str(
                tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            ),
            prompt_ids,
            sampling.stop,
        )

    def look(self, ids_1T: Any, logits_1V: Any) -> Any:
        """A logits processor that keeps them; it stands before temperature and what cuts tokens off."""
        self._logps_V = logits_1V[0].float().log_softmax(-1)
        return logits_1V

    def stop(self, ids_1T: Any, scores: Any, **_: Any) -> Any:
        """A stopping criterion: whether the newest token ends the choice, or nobody waits for it."""
        import torch

        token = int(ids_1T[0, -1])
        self._tokens += 1
        finish: Finish | None = "length" if self._tokens == self._sampling.max_tokens else None
        text = ""
        if token in self._ends:
            text, finish = self._text.rest(), "stop"
        else:
            text, stopped = self._text.add(token)
            if stopped:
                finish = "stop"
            elif finish is not None:
                text += self._text.rest()
        self._tell(Piece(self._index, text, finish, self._chance(token)))
        return torch.tensor([finish is not None or self._left()], device=ids_1T.device)

    def _chance(self, token: int) -> TokenChance | None:
        if self._logps_V is None:
            return None
        best = self._logps_V.topk(self._sampling.logprobs or 0)
        likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenChance(
            self._name(token),
            float(self._logps_V[token]),
            tuple((self._name(each), logprob) for each, logprob in likeliest),
        )

    def _name(self, token: int) -> str:
        return str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))


def _ends(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation config."""
    ends = generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if token is not None)


def _drawing(sampling: Sampling) -> dict[str, Any]:
    if sampling.temperature == 0.0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
    }


class PromptReader:
    """Token ids of prompts, by a tokenizer of its own: one thread may read while another generates."""

    def __init__(self, folder: Path) -> None:
        import transformers

        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """As the model's own template renders it. Raises ``ValueError`` for what it refuses."""
        from jinja2 import TemplateError

        try:
            ids = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses the messages: {error.message}") from None
        return [int(token) for token in ids]

    def text(self, prompt: str) -> list[int]:
        return [int(token) for token in self._tokenizer(prompt)["input_ids"]]

"""How likely a model finds given continuations: what lm-eval 0.4.13's ``HFLM`` computes, shared and packed.

The token sequences of a pass lie in one row as a tree: a beginning that several have in common is computed
once, and a token sees the tokens before it in its own sequence. So the choices of an item share its prompt,
items share their examples, the last token of a choice costs nothing, and nothing is padded.

N tokens of a pass, K of them whose next token is asked about, V vocabulary.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from largeforge_ray.errors import DataError, ModelError
from largeforge_ray.models.adapters import Adapters
from largeforge_ray.models.token_tree import Tree, lay_out
from largeforge_ray.store import local_folder
from largeforge_ray.types import ChoiceRequest, ChoiceScores

FULL_TOKENS = {"cpu": 512, "cuda": 4096}
"""Of a pass of unrelated sequences: more compute no faster on a CPU, and each token is masked from more
others. A GPU's sizes are not measured."""
MOST_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Of a pass in which sequences share most of their tokens; a mask has the square of it."""
PROBE = ((*range(3, 19), *range(40, 48)), (*range(3, 19), *range(60, 68)), tuple(range(80, 96)))
TREE_TOLERANCE = 0.1
"""Nats a token. bfloat16 makes a tenth of it; a layer that sees 8 of the 24 tokens, which changes least, up
to twice as much."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids that end with the ``scored`` ones whose log-probabilities are asked for."""

    ids: tuple[int, ...]
    scored: int

    @property
    def inputs(self) -> tuple[int, ...]:
        """What the model reads: nothing follows the last token."""
        return self.ids[:-1]


@dataclass(frozen=True, slots=True)
class Score:
    """Of one continuation; ``seconds`` are its share of its pass."""

    logprob: float
    greedy: bool
    seconds: float


class Likelihood:
    """One model that one thread at a time may use. ``max_model_len`` is in tokens; longer prompts are cut on
    their left, as lm-eval cuts them.

    ``dtype`` is a torch name. With float32 a score moves by less than 1e-3 with what else is in its pass, and
    differs as little from ``HFLM``'s. bfloat16 takes two thirds of the time on a CPU, and the scores of long
    choices move by half a nat.

    Raises ``OSError`` or ``ValueError`` if transformers cannot load the folder.
    """

    def __init__(self, model_dir: str, *, max_model_len: int, device: str, dtype: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        folder = local_folder(model_dir)
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
        )
        self._model.eval().to(device)
        self._device, self._max_model_len = device, max_model_len
        kind = device.split(":")[0]
        self._full, self._most = FULL_TOKENS[kind], MOST_TOKENS[kind]
        self._adapters = Adapters(self._model)
        self._loaded: dict[str, str | ModelError] = {}
        # Beyond its window a layer would need a mask of its own.
        self._longest_shared = getattr(self._model.config, "sliding_window", None) or max_model_len
        if not self._reads_trees():
            self._longest_shared = 0

    def score(self, requests: Sequence[ChoiceRequest]) -> list[ChoiceScores]:
        """Answer all requests, in their order; one that cannot be answered has ``error`` and harms no other.

        Those that name the same adapter share passes.
        """
        made: dict[int, ChoiceScores] = {}
        read: dict[str | None, dict[int, list[Continuation]]] = defaultdict(dict)
        for i, request in enumerate(requests):
            try:
                read[request.adapter][i] = self._read(request)
            except DataError as error:
                made[i] = ChoiceScores(request.request_id, error=str(error))
        for adapter, group in read.items():
            try:
                self._use(adapter)
            except ModelError as error:
                made |= {i: ChoiceScores(requests[i].request_id, error=str(error)) for i in group}
                continue
            found = iter(self.continuations([each for one in group.values() for each in one]))
            for i, asked in group.items():
                made[i] = _scores(requests[i], asked, list(itertools.islice(found, len(asked))))
        return [made[i] for i in range(len(requests))]

    def continuations(self, asked: Sequence[Continuation]) -> list[Score]:
        """Scores in the order asked, with the adapter that is in use."""
        longest = self._max_model_len + 1
        if cut := sum(len(each.ids) > longest for each in asked):
            _log.warning(
                "%d of %d continuations are too long with their prompts and lose the prompt's left; "
                "model.max_model_len is %d tokens",
                *(cut, len(asked), self._max_model_len),
            )
        kept = [Continuation(each.ids[-longest:], each.scored) for each in asked]
        shared = [i for i, each in enumerate(kept) if len(each.inputs) <= self._longest_shared]
        alone = [[i] for i, each in enumerate(kept) if len(each.inputs) > self._longest_shared]
        packed = lay_out([kept[i].inputs for i in shared], self._full, self._most)
        found: dict[int, Score] = {}
        for part in [*([shared[j] for j in one] for one in packed), *alone]:
            found |= zip(part, self._pass([kept[i] for i in part]), strict=True)
        return [found[i] for i in range(len(kept))]

    def _pass(self, asked: Sequence[Continuation]) -> list[Score]:
        """One forward of continuations in the order of their ids; one alone is computed without a tree."""
        import torch

        started = time.perf_counter()
        tree = Tree.of([each.inputs for each in asked])
        places = [tree.paths[i][-each.scored :] for i, each in enumerate(asked)]
        asked_K = sorted({node for path in places for node in path})
        row = {node: k for k, node in enumerate(asked_K)}
        rows = torch.tensor([row[node] for path in places for node in path], device=self._device)
        targets = torch.tensor([t for each in asked for t in each.ids[-each.scored :]], device=self._device)
        masked: dict[str, Any] = {}
        if len(asked) > 1:
            masked = {
                "attention_mask": tree.mask(self._model.dtype).to(self._device),
                "position_ids": torch.tensor([tree.depths], device=self._device),
            }
        with torch.inference_mode():
            logits_KV = self._model(
                input_ids=torch.tensor([tree.ids], device=self._device),
                logits_to_keep=torch.tensor(asked_K, device=self._device),
                use_cache=False,
                **masked,
            ).logits[0]
            totals_K = logits_KV.float().logsumexp(-1)
            logps = (logits_KV[rows, targets].float() - totals_K[rows]).tolist()
            likeliest = (logits_KV.argmax(-1)[rows] == targets).tolist()
        second = (time.perf_counter() - started) / sum(len(each.ids) for each in asked)
        ends = list(itertools.accumulate(each.scored for each in asked))
        spans = [slice(end - each.scored, end) for end, each in zip(ends, asked, strict=True)]
        return [
            Score(sum(logps[span]), all(likeliest[span]), second * len(each.ids))
            for span, each in zip(spans, asked, strict=True)
        ]

    def _reads_trees(self) -> bool:
        """Whether the model follows a mask and positions of ours; one with a state or ALiBi does not."""
        size = self._model.get_input_embeddings().num_embeddings
        asked = [Continuation(tuple(i % size for i in ids), 8) for ids in PROBE]
        alone = [self._pass([each])[0].logprob for each in asked]
        try:
            together = [score.logprob for score in self._pass(asked)]
        except (RuntimeError, ValueError, TypeError, IndexError):  # it expects a mask of another shape
            return False
        return all(abs(a - b) < 8 * TREE_TOLERANCE for a, b in zip(alone, together, strict=True))

    def _read(self, request: ChoiceRequest) -> list[Continuation]:
        """Token ids as lm-eval reads them. Raises ``DataError``."""
        if not request.choices or (request.context is None) == (request.messages is None):
            raise DataError("a request needs choices and one of context and messages; give them")
        context = request.context if request.messages is None else self._chat(request)
        assert context is not None
        found = self._after(context, request.choices) if context else self._unconditional(request.choices)
        for each, choice in zip(found, request.choices, strict=True):
            if not 0 < each.scored < len(each.ids):
                raise DataError(f"choice {choice!r} or its prompt has no tokens; give each some text")
            if each.scored > self._max_model_len:
                raise DataError(
                    f"a choice of {each.scored} tokens exceeds the context of {self._max_model_len}; "
                    "shorten it or raise model.max_model_len"
                )
        return found

    def _chat(self, request: ChoiceRequest) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(request.messages or ()), add_generation_prompt=True, tokenize=False
                )
            )
        except (TemplateError, ValueError) as error:
            raise DataError(f"the model's chat template refuses the messages: {error}") from None

    def _after(self, context: str, choices: Sequence[str]) -> list[Continuation]:
        """White space that ends a context is read with the choice, because tokens begin with it."""
        begun = self._tokenizer.decode(self._first_id)
        prompt, *wholes = self._tokenizer(
            [context.rstrip(), *(context + choice for choice in choices)],
            **({"add_special_tokens": False} if context.startswith(begun) else {}),
        )["input_ids"]
        return [
            Continuation((*prompt, *whole[len(prompt) :]), max(0, len(whole) - len(prompt)))
            for whole in wholes
        ]

    def _unconditional(self, choices: Sequence[str]) -> list[Continuation]:
        """Choices after nothing but the token that begins a text."""
        encoded = self._tokenizer(list(choices), add_special_tokens=False)["input_ids"]
        first = self._first_id
        return [
            Continuation(tuple(ids) if ids[:1] == [first] else (first, *ids), len(ids) - (ids[:1] == [first]))
            for ids in encoded
        ]

    @property
    def _first_id(self) -> int:
        begin: int | None = self._tokenizer.bos_token_id
        return int(self._tokenizer.eos_token_id) if begin is None else begin

    def _use(self, folder: str | None) -> None:
        """Switch to the adapter in ``folder``. Raises ``ModelError`` for one that does not fit."""
        if folder is not None and folder not in self._loaded:
            try:
                self._loaded[folder] = self._adapters.load(local_folder(folder))
            except ModelError as error:  # it is not tried again
                name = folder.rstrip("/").rpartition("/")[2]
                said = f"adapter {name} cannot be loaded: {error}; train it on this model"
                self._loaded[folder] = ModelError(said)
        handle = None if folder is None else self._loaded[folder]
        if isinstance(handle, ModelError):
            raise handle
        self._adapters.use(handle)


def _scores(request: ChoiceRequest, asked: list[Continuation], found: list[Score]) -> ChoiceScores:
    return ChoiceScores(
        request.request_id,
        logprobs=tuple(score.logprob for score in found),
        greedy=tuple(score.greedy for score in found),
        prompt_tokens=len(asked[0].ids) - asked[0].scored,
        completion_tokens=sum(each.scored for each in asked),
        seconds=sum(score.seconds for score in found),
    )

"""Static embeddings: a text is the mean of its tokens' vectors, which an encoder gave once.

Distilled as model2vec does it (Tulkens and van Dongen 2024): every token alone through the encoder, the main
components, and SIF weights by Zipf's law (Arora et al. 2017). A prompt takes a fraction of a millisecond.

V tokens of the vocabulary, D dimensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from largeforge_ray.routing.encoder import Encoder, Floats, unit
from largeforge_ray.routing.features import clipped

FILES = ("embedding.safetensors", "embedding.json")
SIF = 1e-4
MAX_CHARS = 1024
"""Of a text are read, at both ends: twice what the encoder itself reads."""


MOST_WORDS, LONGEST_WORD = 1 << 16, 32
"""Whose ids are kept, so that what clients send does not fill the memory."""
_PLAIN = re.compile(r"[\t\n\r -~]*")
_WORD = re.compile(r"[a-z0-9]+|[!-~]")


class Words(dict[str, list[int]]):
    """The ids of texts as ``tokenizer`` gives them, and four times as fast where they are plain ASCII.

    BERT's tokenizer takes one word, or one sign, after the other: what each gives is kept.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        told = json.loads(tokenizer.to_str())
        kinds = [(told[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        bert = kinds == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
        self._one_by_one = bert and bool(told["normalizer"]["lowercase"])
        # Those are looked for before anything else, also within words.
        self._whole = [str(token["content"]) for token in told["added_tokens"]]

    def __missing__(self, word: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(self) < MOST_WORDS and len(word) <= LONGEST_WORD:
            self[word] = ids
        return ids

    def ids(self, text: str) -> list[int]:
        """Without the ids that begin and end a sequence."""
        if self._one_by_one and _PLAIN.fullmatch(text) and not any(token in text for token in self._whole):
            return [each for word in _WORD.findall(text.lower()) for each in self[word]]
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


class Embedding:
    """A table of token vectors, read from a folder with ``FILES``."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._table_VD: Floats = load_file(folder / FILES[0])["table"].astype(np.float32)
        tokenizer = Tokenizer.from_file(str(folder / FILES[1]))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._words = Words(tokenizer)

    def embed(self, text: str) -> Floats:
        """D numbers of length 1, or zeros for a text without tokens."""
        return unit(self._table_VD[self._words.ids(clipped(text, MAX_CHARS))].sum(axis=0))

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """N x D."""
        width = self._table_VD.shape[1]
        return np.stack([self.embed(text) for text in texts]) if texts else np.zeros((0, width), np.float32)


def distil(
    encoder: Encoder,
    dimensions: int,
    folder: Path,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``FILES``: every token of the encoder's vocabulary in ``dimensions`` numbers at most.

    It takes minutes; ``told`` hears how many tokens of how many are done.
    """
    from safetensors.numpy import save_file

    tokenizer = encoder.tokenizer
    first, last = tokenizer.encode("").ids
    tokens_V = np.arange(tokenizer.get_vocab_size())
    ids_V3 = np.stack([np.full_like(tokens_V, first), tokens_V, np.full_like(tokens_V, last)], axis=1)
    seen = []
    for start in range(0, len(ids_V3), 256):
        seen.append(encoder.embed_ids(ids_V3[start : start + 256]))
        told(min(start + 256, len(ids_V3)), len(ids_V3))
    table_VD = _main_components(np.concatenate(seen), dimensions) * _sif_weights(len(tokens_V))[:, None]
    save_file({"table": table_VD.astype(np.float16)}, folder / FILES[0])
    tokenizer.save(str(folder / FILES[1]))


def _main_components(vectors_VD: Floats, dimensions: int) -> Any:
    centred = vectors_VD - vectors_VD.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    # Ascending, so the last ones are the main ones.
    return centred @ axes[:, ::-1][:, :dimensions]


def _sif_weights(tokens: int) -> Any:
    """Ids of a WordPiece vocabulary stand for ranks: the more frequent a token, the smaller its id."""
    shares = 1 / np.arange(2, tokens + 2)
    shares /= shares.sum()
    return SIF / (SIF + shares)

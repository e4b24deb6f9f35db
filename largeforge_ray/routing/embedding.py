"""Static embeddings: a text is the mean of its tokens' vectors, which an encoder gave once.

Distilled as model2vec does it (Tulkens and van Dongen 2024): every token alone through the encoder, the main
components, and SIF weights by Zipf's law (Arora et al. 2017). A prompt takes a fraction of a millisecond.

V tokens of the vocabulary, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from largeforge_ray.routing.encoder import Encoder, Floats, unit
from largeforge_ray.routing.features import clipped

FILES = ("embedding.safetensors", "embedding.json")
SIF = 1e-4
MAX_CHARS = 1024
"""Of a text are read, at both ends: twice what the encoder itself reads."""


class Embedding:
    """A table of token vectors, read from a folder with ``FILES``."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        self._table_VD: Floats = load_file(folder / FILES[0])["table"].astype(np.float32)
        self._tokenizer = Tokenizer.from_file(str(folder / FILES[1]))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def embed(self, text: str) -> Floats:
        """D numbers of length 1, or zeros for a text without tokens."""
        ids = self._tokenizer.encode(clipped(text, MAX_CHARS), add_special_tokens=False).ids
        return unit(self._table_VD[ids].sum(axis=0))

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """N x D."""
        width = self._table_VD.shape[1]
        return np.stack([self.embed(text) for text in texts]) if texts else np.zeros((0, width), np.float32)


def distil(encoder: Encoder, dimensions: int, folder: Path) -> None:
    """Write ``FILES``: every token of the encoder's vocabulary in ``dimensions`` numbers at most."""
    from safetensors.numpy import save_file

    tokenizer = encoder.tokenizer
    first, last = tokenizer.encode("").ids
    tokens_V = np.arange(tokenizer.get_vocab_size())
    ids_V3 = np.stack([np.full_like(tokens_V, first), tokens_V, np.full_like(tokens_V, last)], axis=1)
    seen = [encoder.embed_ids(ids_V3[start : start + 256]) for start in range(0, len(ids_V3), 256)]
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

"""A BERT sentence encoder's forward pass in numpy: what a prompt means, without torch in a router's process.

B texts of one batch, T tokens, D dimensions, H heads, F of the wide layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from largeforge_ray.errors import ModelError

Floats = NDArray[np.float32]

FILES = ("config.json", "model.safetensors", "tokenizer.json")
MAX_TOKENS = 128
"""Of a text are read; all-MiniLM-L6-v2 was trained on as many."""
BATCH_TEXTS = 32


class Encoder:
    """Mean of the last layer's states, of length 1: Reimers and Gurevych 2019 (arXiv:1908.10084).

    It reads a folder with ``FILES`` as transformers writes them. Raises ``ModelError`` for anything but BERT
    with GELU.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (config["model_type"], config["hidden_act"]) != ("bert", "gelu"):
            raise ModelError(
                f"{folder} is a {config['model_type']} with {config['hidden_act']}, and encoders are BERT "
                "models with gelu; use all-MiniLM-L6-v2 or one like it"
            )
        self._weights: dict[str, Floats] = load_file(folder / "model.safetensors")
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._eps = config["layer_norm_eps"]
        self.width: int = config["hidden_size"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def embed(self, text: str) -> Floats:
        """D numbers of length 1."""
        vector_D: Floats = self.embed_ids(np.asarray([self.tokenizer.encode(text).ids]))[0]
        return vector_D

    def embed_all(self, texts: Sequence[str]) -> Floats:
        """N x D. Texts of one length go together, so that nothing is padded."""
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch(list(texts))]
        made = np.zeros((len(ids), self.width), np.float32)
        for rows in batches([len(one) for one in ids]):
            made[rows] = self.embed_ids(np.asarray([ids[row] for row in rows]))
        return made

    def embed_ids(self, ids_BT: NDArray[np.int64]) -> Floats:
        """B x D of token ids with the special ones around them."""
        states_BTD = self._embed_tokens(ids_BT)
        for layer in range(self._layers):
            at = f"encoder.layer.{layer}"
            attended = self._linear(
                self._attend(states_BTD, f"{at}.attention.self"), f"{at}.attention.output.dense"
            )
            states_BTD = self._norm(states_BTD + attended, f"{at}.attention.output.LayerNorm")
            wide_BTF = _gelu(self._linear(states_BTD, f"{at}.intermediate.dense"))
            states_BTD = self._norm(
                states_BTD + self._linear(wide_BTF, f"{at}.output.dense"), f"{at}.output.LayerNorm"
            )
        return unit(states_BTD.mean(axis=1))

    def _embed_tokens(self, ids_BT: NDArray[np.int64]) -> Floats:
        words, places, kinds = (
            self._weights[f"embeddings.{name}_embeddings.weight"]
            for name in ("word", "position", "token_type")
        )
        return self._norm(words[ids_BT] + places[: ids_BT.shape[1]] + kinds[0], "embeddings.LayerNorm")

    def _attend(self, states_BTD: Floats, at: str) -> Floats:
        batch, tokens, width = states_BTD.shape

        def heads(name: str) -> Floats:
            made = self._linear(states_BTD, f"{at}.{name}")
            return made.reshape(batch, tokens, self._heads, -1).transpose(0, 2, 1, 3)

        query, key, value = heads("query"), heads("key"), heads("value")
        logits_BHTT = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width / self._heads))
        shares_BHTT = np.exp(logits_BHTT - logits_BHTT.max(axis=-1, keepdims=True))
        shares_BHTT /= shares_BHTT.sum(axis=-1, keepdims=True)
        mixed_BTD: Floats = (shares_BHTT @ value).transpose(0, 2, 1, 3).reshape(batch, tokens, width)
        return mixed_BTD

    def _linear(self, states: Floats, at: str) -> Floats:
        made: Floats = states @ self._weights[f"{at}.weight"].T + self._weights[f"{at}.bias"]
        return made

    def _norm(self, states: Floats, at: str) -> Floats:
        centred = states - states.mean(axis=-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._eps)
        made: Floats = centred / scale * self._weights[f"{at}.weight"] + self._weights[f"{at}.bias"]
        return made


def unit(vectors: Any) -> Floats:
    """Vectors of length 1; zeros stay zeros."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    made: Floats = (vectors / np.where(norms > 0, norms, 1.0)).astype(np.float32)
    return made


def batches(lengths: Sequence[int]) -> Iterable[list[int]]:
    """Places of equal lengths, ``BATCH_TEXTS`` at most in each."""
    by_length: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        by_length.setdefault(length, []).append(place)
    for places in by_length.values():
        for start in range(0, len(places), BATCH_TEXTS):
            yield places[start : start + BATCH_TEXTS]


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    made: Floats = 0.5 * x * (1 + erf(x * np.float32(0.70710678)))
    return made

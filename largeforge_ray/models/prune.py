"""A model of fewer layers out of one of more: the weights of some layers, numbered anew, and all the rest.

Weights go from file to file a tensor at a time; the model itself is never loaded. Safetensors format: a
64-bit length, that many bytes of JSON, and the tensors' bytes at the offsets it gives, without gaps.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ModelError
from largeforge_ray.models.gguf import read_layers
from largeforge_ray.models.source import ModelSource

NUMBERED = re.compile(r"(.*?\blayers)\.(\d+)\.(.+)")
PER_LAYER = re.compile(r"layer|types")
"""In the names of settings that may have an entry for each layer, such as ``layer_types``."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor's bytes: ``size`` of them in ``file`` from the byte ``begin`` on."""

    file: Path
    begin: int
    size: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def alignment(self) -> float:
        """Bytes of an element."""
        return self.size / max(math.prod(self.shape), 1)


def count_layers(source: ModelSource) -> int | None:
    """How many layers a located model has; None if that is not known before it is downloaded."""
    if source.gguf is not None:
        return read_layers(source.gguf)
    return layers_in(source.folder) if source.folder is not None else None


def layers_in(folder: Path) -> int:
    """The number of layers of a model's folder. Raises ``ModelError`` if its ``config.json`` does not say."""
    number = _settings(folder).get("num_hidden_layers")
    if not isinstance(number, int):
        raise ModelError(
            f"config.json of model '{folder.name}' has no num_hidden_layers, so it is not known which layers "
            "there are to choose from; take a model with one list of layers"
        )
    return number


def pruned_bytes(folder: Path, layers: Sequence[int]) -> int:
    """Bytes of the weights that ``prune`` would write."""
    return sum(tensor.size for tensor in _chosen(folder, layers).values())


def prune(base: Path, layers: Sequence[int], target: Path) -> None:
    """Write weights and ``config.json`` of ``layers`` of the base, ascending numbers, into ``target``.

    Raises ``ModelError`` for a model whose layers are not one numbered list, or do not fit a configuration
    of fewer. Tokenizer and chat template are the base's own files and not written here.
    """
    weights = _chosen(base, layers)
    _write_weights(weights, target / "model.safetensors")
    text = json.dumps(_fewer(base, layers), indent=2, sort_keys=True)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    _check_complete(target)


def _settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return settings


def _chosen(folder: Path, layers: Sequence[int]) -> dict[str, Stored]:
    """The tensors that stay, by their new names."""
    stored = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in _read(file)}
    if not stored:
        raise ModelError(f"model '{folder.name}' has no safetensors to take layers from; convert its weights")
    found = {name: match for name in stored if (match := NUMBERED.fullmatch(name))}
    lists = sorted({match[1] for match in found.values()})
    if len(lists) != 1:
        raise ModelError(
            f"weights of model '{folder.name}' have {' and '.join(lists) or 'no list named layers'}, and a "
            "student takes its layers from one numbered list; take a model with one list of layers"
        )
    present, expected = {int(match[2]) for match in found.values()}, layers_in(folder)
    if present != set(range(expected)):
        raise ModelError(
            f"weights of model '{folder.name}' have layers {min(present)} to {max(present)} and its "
            f"config.json says {expected}; take a model whose num_hidden_layers counts all of them"
        )
    place = {old: new for new, old in enumerate(layers)}
    kept = {name: tensor for name, tensor in stored.items() if name not in found}
    for name, match in found.items():
        if int(match[2]) in place:
            kept[f"{match[1]}.{place[int(match[2])]}.{match[3]}"] = stored[name]
    return kept


def _read(file: Path) -> list[tuple[str, Stored]]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
    except (struct.error, ValueError) as error:
        raise ModelError(f"'{file.name}' is no safetensors file: {error}; get the model again") from None
    header.pop("__metadata__", None)
    return [
        (name, Stored(file, 8 + length + begin, end - begin, one["dtype"], tuple(one["shape"])))
        for name, one in header.items()
        for begin, end in [one["data_offsets"]]
    ]


def _write_weights(weights: dict[str, Stored], path: Path) -> None:
    # Readers map the file into memory: wide elements first, so that each lies at a multiple of its width.
    ordered = sorted(weights.items(), key=lambda item: (-item[1].alignment, item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as sink:
        sink.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            _copy(tensor, sink)


def _copy(tensor: Stored, sink: Any) -> None:
    left = tensor.size
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.begin)
        while left and (block := stream.read(min(left, 16 << 20))):
            sink.write(block)
            left -= len(block)
    if left:
        raise ModelError(
            f"'{tensor.file.name}' ends {left} bytes before a tensor its header names; get the model again"
        )


def _fewer(base: Path, layers: Sequence[int]) -> dict[str, Any]:
    """The base's settings with a number of layers, and an entry of each in every list of them."""
    import transformers

    settings = _settings(base)
    # Lists that the file leaves to a rule, such as every sixth layer, are written out before they are cut.
    known = transformers.AutoConfig.from_pretrained(base).to_dict()
    cut = {
        name: [value[i] for i in layers]
        for name, value in known.items()
        if PER_LAYER.search(name) and isinstance(value, list) and len(value) == settings["num_hidden_layers"]
    }
    return settings | cut | {"num_hidden_layers": len(layers)}


def _check_complete(folder: Path) -> None:
    """Transformers fills what it misses with noise and drops what it does not know, and warns at most."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # On the meta device names and shapes are compared, and no weight is read.
    _, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map={"": "meta"}, output_loading_info=True, ignore_mismatched_sizes=True
    )
    odd = [*found["missing_keys"], *found["unexpected_keys"], *(key[0] for key in found["mismatched_keys"])]
    if odd:
        raise ModelError(
            f"a {_settings(folder)['model_type']} model of these layers has other weights than its "
            f"config.json describes ({len(odd)}, the first is {min(odd)}): its layers differ in kind; "
            "choose layers in which the pattern of the base goes on, or take another model"
        )

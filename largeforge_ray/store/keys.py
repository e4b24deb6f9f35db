"""Artifact keys: what an artifact is made of decides what it is called."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largeforge_ray.errors import ConfigError, StoreError

SHORT = 16
"""Hex digits of a key that name its folder."""

_KIND = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_KEY = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 1 << 20


def artifact_key(kind: str, config: Mapping[str, Any], parents: Sequence[str]) -> str:
    """SHA-256 (64 hex digits) of the kind, the resolved config and the parents' keys.

    Neither the order of the config's fields nor that of the parents matters; every value does.

    Raises:
        ConfigError: the config holds something JSON cannot, such as a NaN or a key that is no string.
    """
    text = json.dumps([kind, canonical_json(config), sorted(parents)])
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII only; tuples read as lists.

    Raises:
        ConfigError: the value cannot be written as JSON and read back the same.
    """
    try:
        return json.dumps(_checked(value, "config"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        raise ConfigError(f"config is not JSON: {error}; use finite numbers and no cycles") from error


def _checked(value: Any, where: str) -> Any:
    # json.dumps alone would write the key 1 as "1", so two different configs would share a key.
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ConfigError(f"{where} has the key {name!r}, JSON keys are strings; write {str(name)!r}")
        return {name: _checked(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, str | int | float):
        return value
    raise ConfigError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold; resolve it to a string, number or list"
    )


def check_kind_and_key(kind: str, key: str) -> None:
    """Refuse what would not be a safe folder name.

    Raises:
        StoreError: the kind is no lower-case word, or the key is not 64 hex digits.
    """
    if not _KIND.fullmatch(kind):
        raise StoreError(
            f"artifact kind {kind!r} is not a lower-case word; use one such as 'dataset' or 'adapter'"
        )
    if not _KEY.fullmatch(key):
        raise StoreError(f"artifact key {key!r} is not 64 hex digits; make it with artifact_key()")


def artifact_folder(kind: str, key: str) -> str:
    """Where an artifact lies, relative to the store."""
    return f"artifacts/{kind}/{key[:SHORT]}"


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()

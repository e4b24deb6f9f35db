"""The keys file: who may ask a served router, how often, and how much at once.

A keys file is YAML, readable by its owner alone; of a key it holds the SHA-256, so the file gives no key
away. Keys are 256 random bits, which need no salt: no table of their hashes can be made.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from largeforge_ray.errors import ConfigError

PREFIX = "lf-"
"""Marks a key, so that scanners of leaked secrets find it."""


class Key(BaseModel):
    """One line of a keys file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    requests_per_minute: int | None = Field(None, ge=1)
    concurrency: int | None = Field(None, ge=1, description="Requests under way at once.")


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        ConfigError: it is not there, others may read it, or an entry is wrong.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"keys file {path}: {error.strerror}; make one with: largeforge keys new NAME"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"keys file {path} is open to others (mode {mode & 0o777:o}); run: chmod 600 {path}"
        )
    try:
        keys = tuple(Key(**entry) for entry in yaml.safe_load(text) or [])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"keys file {path}: {first['loc'][0]}: {first['msg']}") from None
    except (yaml.YAMLError, TypeError):
        raise ConfigError(
            f"keys file {path} is no YAML list of keys; make one with: largeforge keys new NAME"
        ) from None
    names = [key.name for key in keys]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"keys file {path} has the name '{min(twice)}' twice; revoke one")
    return keys


def write_keys(path: Path, keys: tuple[Key, ...]) -> None:
    """Replace the file, whole or not at all."""
    lines = yaml.safe_dump([key.model_dump(exclude_none=True) for key in keys], sort_keys=False)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(
        os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(lines)
    beside.replace(path)


def add_key(path: Path, name: str, requests_per_minute: int | None, concurrency: int | None) -> str:
    """A fresh key, which is kept nowhere; its entry is added to the file, which is made if need be.

    Raises ``ConfigError`` for a name that is taken or malformed, or a limit below 1.
    """
    keys = read_keys(path) if path.exists() else ()
    if name in {key.name for key in keys}:
        raise ConfigError(f"keys file {path} has a key '{name}'; revoke it first, or choose another name")
    token = PREFIX + secrets.token_urlsafe(32)
    limits = {"requests_per_minute": requests_per_minute, "concurrency": concurrency}
    try:
        entry = Key(name=name, sha256=hash_of(token), **limits)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ConfigError(f"{first['loc'][0]}: {first['msg']}") from None
    write_keys(path, (*keys, entry))
    return token


def revoke_key(path: Path, name: str) -> None:
    """Take a key out of the file. Raises ``ConfigError`` if it has none of that name."""
    keys = read_keys(path)
    if name not in {key.name for key in keys}:
        raise ConfigError(f"keys file {path} has no key '{name}'; it has: {', '.join(k.name for k in keys)}")
    write_keys(path, tuple(key for key in keys if key.name != name))


def hash_of(token: str) -> str:
    """What the file holds of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def make_token(path: Path) -> None:
    """A fresh token in a new file that its owner alone can read. Raises ``ConfigError`` if it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise ConfigError(
            f"admin token file {path}: {error.strerror}; remove it, or name another file"
        ) from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_urlsafe(32) + "\n")


def read_token(path: Path) -> str:
    """The admin token in a file. Raises ``ConfigError`` if it is not there, open to others, or short."""
    try:
        token, mode = path.read_text(encoding="utf-8").strip(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"admin token file {path}: {error.strerror}; make one with: largeforge keys admin {path}"
        ) from None
    if mode & 0o077:
        raise ConfigError(
            f"admin token file {path} is open to others (mode {mode & 0o777:o}); run: chmod 600 {path}"
        )
    if len(token) < 16:
        raise ConfigError(f"admin token file {path} holds {len(token)} characters; at least 16 are wanted")
    return token

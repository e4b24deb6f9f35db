"""A checkpoint as it travels between a trial and its pack: bytes by path relative to its folder."""

from __future__ import annotations

from pathlib import Path


def read_files(folder: Path) -> dict[str, bytes]:
    """Every file in ``folder`` and below."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """What ``read_files`` read, into another folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

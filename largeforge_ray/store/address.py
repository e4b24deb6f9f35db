"""Where files are, for another process: each machine makes of an address what it can open.

An address is a path of a folder that all machines see alike, or a URL of any that fsspec opens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from largeforge_ray.store.store import Store


def local_folder(address: str | Path) -> Path:
    """The folder of an artifact on this machine, of what ``Store.address`` gave: fetched and verified if the
    store is remote, once a machine.

    Raises ``StoreError`` if the artifact is there no more.
    """
    url, _, place = str(address).rpartition("/artifacts/")
    if "://" not in url:
        return Path(address)
    kind, short = place.split("/")[:2]
    store = Store(url)
    return store.fetch(store.at(kind, short))


def for_arrow(address: str) -> tuple[str, Any]:
    """A path and its file system, as pyarrow and so Ray take them; None is that of this machine."""
    if "://" not in address:
        return address, None
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files, path = fsspec.url_to_fs(address)
    return path, PyFileSystem(FSSpecHandler(files))

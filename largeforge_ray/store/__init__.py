"""Artifacts by key, with lineage, in a local folder or behind any fsspec URL.

store = open_store("./forge")                         # or "s3://bucket/forge"
key = artifact_key("dataset", config, parents)        # what it is made of decides what it is called
if store.find("dataset", key) is None:
    with store.staging("dataset", key) as folder:     # removed on any exit, unless published
        (folder / "train.jsonl").write_text(rows)
        store.publish("dataset", key, "rows", parents, config, folder, metrics={"rows": 400})
artifact = store.get("rows")                          # by name, or by the first digits of its key
path = store.fetch(artifact) / "train.jsonl"          # verified; downloaded first if it is remote
print(format_lineage(lineage_tree(store, artifact)))

journal = RowJournal(store, key)                      # rows in progress, each key once
journal.append(rows)
todo = wanted - journal.done()
"""

from __future__ import annotations

from largeforge_ray.store.address import local_folder
from largeforge_ray.store.artifact import Artifact
from largeforge_ray.store.journal import RowJournal
from largeforge_ray.store.keys import artifact_key
from largeforge_ray.store.lineage import format_lineage, lineage_tree
from largeforge_ray.store.store import Store, open_store

__all__ = [
    "open_store",
    "Store",
    "Artifact",
    "local_folder",
    "artifact_key",
    "RowJournal",
    "lineage_tree",
    "format_lineage",
]

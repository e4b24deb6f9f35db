"""Rows and formats: what users bring, checked line by line, and chats rendered with loss masks.

from largeforge_ray.data import ingest, read_rows, render_chat

counts = ingest(Path("prompts.jsonl"), test_share=0.2, target=folder)
for row in read_rows(folder, "train"): ...
render_chat(tokenizer, row["messages"], max_tokens=512)   # input_ids and labels
"""

from __future__ import annotations

from largeforge_ray.data.chat import render_chat
from largeforge_ray.data.ingest import content_identity, ingest
from largeforge_ray.data.rows import count_rows, read_rows, write_rows
from largeforge_ray.data.split import is_test, row_hash

__all__ = [
    "content_identity",
    "count_rows",
    "ingest",
    "is_test",
    "read_rows",
    "render_chat",
    "row_hash",
    "write_rows",
]

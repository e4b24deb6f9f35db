"""Thin Ray actors around library classes.

from actors import start_engine

engine = start_engine("/path/to/model", max_model_len=1024)
generations = ray.get(engine.generate.remote(requests))
"""

from __future__ import annotations

from actors.board import RunBoard, start_board
from actors.engine import EngineActor, start_engine

__all__ = ["EngineActor", "RunBoard", "start_board", "start_engine"]

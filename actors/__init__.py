"""Thin Ray actors around library classes, and the process's own connection to Ray.

from actors import ray_session, start_engine

with ray_session(print) as session:
    session.connect()
    engine = start_engine("/path/to/model", max_model_len=1024)
    generations = ray.get(engine.generate.remote(requests))
"""

from __future__ import annotations

from actors.board import RunBoard, start_board
from actors.endpoint import start_endpoint
from actors.engine import start_engine
from actors.pack import start_pack
from actors.session import Session, polite_exit, ray_session

__all__ = [
    "RunBoard",
    "Session",
    "polite_exit",
    "ray_session",
    "start_board",
    "start_endpoint",
    "start_engine",
    "start_pack",
]

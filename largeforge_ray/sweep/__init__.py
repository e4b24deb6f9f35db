"""Sweeps on Ray Tune: many trainings on one frozen base, several of them in one process.

from largeforge_ray.sweep import PACKS, Pack, PackJob, Trial, run_sweep

board.pin.remote(PACKS, {0: start_pack(PackJob(stage, model_dir, tokens_dir))})  # actors around Pack
trials = run_sweep(stage, board, storage=address, kept=folder)  # goes on where a killed one was
best = min(trials, key=lambda t: t.held_out)                     # its adapter is in best.folder
"""

from __future__ import annotations

from largeforge_ray.sweep.lane_trial import PACKS
from largeforge_ray.sweep.pack import Pack, PackJob
from largeforge_ray.sweep.tuner import Trial, run_sweep

__all__ = ["PACKS", "Pack", "PackJob", "Trial", "run_sweep"]

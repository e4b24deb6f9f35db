"""What the entry points share: a manifest, checked to have what the job is named for, then run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actors.session import polite_exit


def main(job: str) -> None:
    """Read ``--config``, run it, exit as ``largeforge run`` does. ``job`` is an algorithm, or ``teach``."""
    from train_jobs.cli import run_cli

    @click.command(
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=f"Run the manifest CONFIG, which has {_wanted(job)}. Stages that are in the store are not run "
        f"again, and a killed one goes on from its newest checkpoint or its journal.\n\n"
        f"A config to start from: train_jobs/manifests/{job}.yaml. All fields: docs/manifest.md.",
    )
    @click.option("--config", required=True, type=click.Path(path_type=Path), help="A manifest.")
    @click.option("--store", default=None, help="A folder or URL instead of the manifest's store.")
    def train(config: Path, store: str | None) -> None:
        from largeforge_ray.config import load_manifest
        from largeforge_ray.errors import ConfigError
        from train_jobs.commands import run_manifest

        stages = load_manifest(config).stages
        if not any(job in _names(s) for s in stages):
            found = ", ".join(f"'{s.name}': {' '.join(_names(s))}" for s in stages if _names(s))
            raise ConfigError(
                f"{config} has no {job} stage, but {found or 'neither teaches nor trains'}; give it "
                f"{_wanted(job)} or use largeforge run"
            )
        run_manifest(config, store)

    with polite_exit():
        run_cli(train, None)


def _names(stage: Any) -> list[str]:
    """The jobs a stage is: teach, or a training's algorithm, and QLoRA if its base is quantised."""
    if stage.kind == "teach":
        return ["teach"]
    if stage.kind != "train":
        return []
    return [stage.algorithm.name] + (["qlora"] if stage.lora and stage.lora.quantize else [])


def _wanted(job: str) -> str:
    if job == "teach":
        return "a stage of kind: teach"
    return f"a train stage with {'lora: {quantize: nf4}' if job == 'qlora' else f'algorithm: {job}'}"

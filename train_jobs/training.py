"""What the algorithms' entry points share: a manifest, checked to train with the algorithm, then run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actors.session import polite_exit


def main(algorithm: str) -> None:
    """Read ``--config``, run it, and exit as ``largeforge run`` does."""
    from train_jobs.cli import run_cli

    @click.command(
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        help=f"Run the manifest CONFIG, which has a train stage with {_wanted(algorithm)}. Stages that are "
        f"in the store are not run again, and a killed training goes on from its newest checkpoint.\n\n"
        f"A config to start from: train_jobs/manifests/{algorithm}.yaml. All fields: docs/manifest.md.",
    )
    @click.option("--config", required=True, type=click.Path(path_type=Path), help="A manifest.")
    @click.option("--store", default=None, help="A folder or URL instead of the manifest's store.")
    def train(config: Path, store: str | None) -> None:
        from largeforge_ray.config import load_manifest
        from largeforge_ray.errors import ConfigError
        from train_jobs.commands import run_manifest

        stages = [s for s in load_manifest(config).stages if s.kind == "train"]
        if not any(algorithm in _names(s) for s in stages):
            found = ", ".join(f"'{s.name}' with {' '.join(_names(s))}" for s in stages) or "no train stage"
            raise ConfigError(
                f"{config} trains {found}, and not with {algorithm}; set {_wanted(algorithm)} or use "
                "largeforge run"
            )
        run_manifest(config, store)

    with polite_exit():
        run_cli(train, None)


def _names(stage: Any) -> list[str]:
    """What a train stage is: its algorithm, and QLoRA if its base is quantised."""
    return [stage.algorithm.name] + (["qlora"] if stage.lora and stage.lora.quantize else [])


def _wanted(algorithm: str) -> str:
    return "lora: {quantize: nf4}" if algorithm == "qlora" else f"algorithm: {algorithm}"

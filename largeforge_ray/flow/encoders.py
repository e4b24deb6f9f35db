"""Where a router's sentence encoder comes from, and what of it goes into the router's artifact."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.config.routing import RouterStage
from largeforge_ray.errors import ModelError
from largeforge_ray.models.source import ModelSource, locate
from largeforge_ray.routing.policies import ENCODER

LONGEST_TOKENS = 128
DIMENSIONS = 256
"""Of a static embedding; the encoder's others hold little (as model2vec has it)."""


def find_encoder(declared: RouterStage, folder: Path) -> ModelSource:
    """Locate the encoder. Raises ``ModelError`` if it is not on this machine."""
    source = locate(ModelConfig(source=declared.encoder_source, max_model_len=LONGEST_TOKENS), folder)
    if source.folder is None:
        raise ModelError(
            f"encoder_source '{declared.encoder_source}' of stage '{declared.name}' is not on this machine; "
            "give package:NAME or a folder"
        )
    return source


def write_encoder(
    declared: RouterStage,
    source: ModelSource,
    scratch: Path,
    target: Path,
    told: Callable[[int, int], None],
) -> None:
    """Put the encoder, or the table distilled from it, into ``target``.

    Distilling takes minutes, and ``told`` hears how many tokens of how many are done; the table is kept below
    ``scratch`` for the next router of the same encoder.
    """
    from largeforge_ray.routing import embedding, encoder

    assert source.folder is not None
    if declared.encoder == "full":
        (target / ENCODER).mkdir()
        for name in encoder.FILES:
            shutil.copyfile(source.folder / name, target / ENCODER / name)
        return
    digest = hashlib.sha256(json.dumps([source.identity, DIMENSIONS], sort_keys=True).encode()).hexdigest()
    kept = scratch / "embeddings" / digest[:16]
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
            made = Path(beside) / "made"
            made.mkdir()
            embedding.distil(encoder.Encoder(source.folder), DIMENSIONS, made, told)
            os.replace(made, kept)
    for name in embedding.FILES:
        shutil.copyfile(kept / name, target / name)

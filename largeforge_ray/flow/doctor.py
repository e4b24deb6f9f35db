"""Checks of this machine, each with what was found and what to do about it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from largeforge_ray.errors import ForgeError, ResourceError
from largeforge_ray.models.hardware import Hardware, detect, engine_env

LOCK = Path(__file__).parents[2] / "requirements" / "cpu.txt"
SUPPORTED = ((3, 11), (3, 12))
MIN_MEMORY_GIB, MIN_DISK_GIB = 8.0, 5.0
PORTS = {8000: "the router", 8265: "the Ray dashboard"}
START_LIMIT_S = 240


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix`` says what to do and is empty if all is well."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def examine(store_url: str, *, quick: bool = False) -> Iterator[Check]:
    """Run the checks one by one; with ``quick`` those that start torch and vLLM are left out."""
    hardware = detect()
    yield check_python(sys.version_info[:2])
    yield check_versions(LOCK)
    yield check_memory(hardware)
    yield check_disk(hardware)
    for port, user in PORTS.items():
        yield check_port(port, user)
    yield check_store(store_url)
    yield check_sandbox()
    if not quick:
        yield check_start("torch", TORCH_PROGRAM)
        yield check_start("vllm", VLLM_PROGRAM)


def check_python(found: tuple[int, ...]) -> Check:
    text = ".".join(map(str, found))
    wanted = " or ".join(".".join(map(str, v)) for v in SUPPORTED)
    return Check("python", found in SUPPORTED, text, f"use Python {wanted}")


def check_versions(lock: Path, installed: Callable[[str], str] = version) -> Check:
    """Compare what is installed with the lock; outside a checkout there is no lock to compare with."""
    if not lock.is_file():
        return Check("versions", True, "no lock file beside this installation; not compared")
    pins = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    wrong = []
    for name, pinned in pins:
        try:
            have = installed(name)
        except PackageNotFoundError:
            have = "not installed"
        if have != pinned and have.split("+")[0] != pinned:
            wrong.append(f"{name} {have} (lock: {pinned})")
    if wrong:
        shown = ", ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        return Check("versions", False, shown, f"pip install --no-deps -r {lock}")
    return Check("versions", True, f"{len(pins)} packages as locked")


def check_memory(hardware: Hardware) -> Check:
    found = f"{hardware.memory_gib:.1f} GiB available, {hardware.cpus} CPUs, {hardware.gpus} GPUs"
    return Check(
        "memory",
        hardware.memory_gib >= MIN_MEMORY_GIB,
        found,
        f"free memory until {MIN_MEMORY_GIB:.0f} GiB are available",
    )


def check_disk(hardware: Hardware) -> Check:
    found = f"{hardware.disk_gib:.1f} GiB free"
    return Check(
        "disk",
        hardware.disk_gib >= MIN_DISK_GIB,
        found,
        f"free disk until {MIN_DISK_GIB:.0f} GiB are available",
    )


def check_port(port: int, user: str) -> Check:
    if problem := port_problem(port):
        fix = f"stop what listens on it, or choose another with --port (wanted by {user})"
        return Check(f"port {port}", False, problem, fix)
    return Check(f"port {port}", True, "free")


def require_port(port: int) -> None:
    """Raise ``ResourceError`` if ``port`` on loopback cannot be listened on."""
    if problem := port_problem(port):
        raise ResourceError(
            f"port {port} cannot be used: {problem}; stop what listens on it, or choose another with --port"
        )


def port_problem(port: int) -> str | None:
    """Why ``port`` on loopback cannot be listened on, or None."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return None


def check_store(url: str) -> Check:
    from largeforge_ray.store import open_store

    try:
        open_store(url)
    except ForgeError as error:
        return Check("store", False, str(error), "see the message")
    return Check("store", True, f"{url} can be written")


def check_sandbox() -> Check:
    """Never a failure: only rows with ``check: code`` need it, and without it they are refused."""
    from largeforge_ray.teach.sandbox import available

    if problem := available():
        return Check("sandbox", True, f"rows with check: code are refused: {problem}")
    return Check("sandbox", True, "generated code is contained")


def require_sandbox(source: Path) -> None:
    """Raise ``ResourceError`` if rows of ``source`` need the sandbox and it does not work here."""
    from largeforge_ray.data.ingest import asks_for
    from largeforge_ray.teach.sandbox import available

    if asks_for("code", source) and (problem := available()):
        raise ResourceError(f"rows of '{source.name}' have check 'code', but {problem}")


TORCH_PROGRAM = """
import torch
product = torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
assert float(product[0, 0]) == 64.0
print(torch.__version__)
"""
VLLM_PROGRAM = """
import json, pathlib, tempfile
from transformers import LlamaConfig, LlamaForCausalLM
folder = pathlib.Path(tempfile.mkdtemp())
LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=256)).save_pretrained(folder)
from vllm import LLM, SamplingParams, __version__
from largeforge_ray.models.hardware import engine_args
settings = engine_args(folder, max_model_len=64)
settings.pop("enable_log_requests")  # the asynchronous engine's alone
llm = LLM(skip_tokenizer_init=True, **settings)
sampling = SamplingParams(max_tokens=4, detokenize=False)
out = llm.generate({"prompt_token_ids": [1, 2, 3]}, sampling, use_tqdm=False)
assert out[0].outputs[0].token_ids
print(__version__)
"""


def check_start(name: str, program: str) -> Check:
    """Run a small real program in its own process: a library that imports may still not compute."""
    environment = os.environ | engine_env()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check(
            name, False, f"did not finish in {START_LIMIT_S} s", "close other programs and try again"
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Check(name, False, last[:200], f"pip install --no-deps -r {LOCK}")
    return Check(name, True, f"{done.stdout.strip().splitlines()[-1]} computes")

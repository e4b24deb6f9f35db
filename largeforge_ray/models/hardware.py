"""The only place that asks "CPU or GPU?" and turns the answer into engine and trainer arguments.

Measured for vLLM 0.29.0 and Ray 2.60.0: on a CPU the engine wants eager mode and a stated KV
cache size, and Ray sets ``OMP_NUM_THREADS`` to a worker's logical CPUs, which would leave the
engine on one thread.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from largeforge_ray.config.speculation import Speculation
from largeforge_ray.errors import ConfigError
from largeforge_ray.models.engine_life import BOUND
from largeforge_ray.models.speculation import speculation_args

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Hardware:
    """What this machine offers. ``memory_gib`` is what is available now, not what is built in."""

    cpus: int
    gpus: int
    memory_gib: float
    disk_gib: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def detect(folder: Path | None = None) -> Hardware:
    """Read CPUs, GPUs, memory and the free disk under ``folder`` without importing torch."""
    gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = min(gpus, len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))
    probe = (folder or Path.cwd()).absolute()
    while not probe.exists():
        probe = probe.parent
    return Hardware(
        cpus=len(os.sched_getaffinity(0)),
        gpus=gpus,
        memory_gib=_available_memory_bytes() / GIB,
        disk_gib=shutil.disk_usage(probe).free / GIB,
    )


DEVICE = "LARGEFORGE_DEVICE"
"""Environment variable: ``cpu`` or ``cuda``, for a cluster whose autoscaler has yet to start GPU nodes."""


def gpus_each() -> int:
    """GPUs that an engine or a training worker asks Ray for: one if the cluster has any, which this process's
    machine need not. Without a cluster it goes by this machine.

    Raises ``ConfigError`` for another value of ``DEVICE``.
    """
    import ray

    if wanted := os.environ.get(DEVICE):
        if wanted not in ("cpu", "cuda"):
            raise ConfigError(f"{DEVICE} is {wanted!r}; set it to cpu or cuda, or leave it to what there is")
        return int(wanted == "cuda")
    if ray.is_initialized():
        resources: dict[str, float] = cast(Any, ray).cluster_resources()
        return int(resources.get("GPU", 0) >= 1)
    return int(detect().gpus > 0)


def _available_memory_bytes() -> int:
    """The smaller of what the kernel has available and what the control group still allows."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available


def library_env(hardware: Hardware | None = None) -> dict[str, str]:
    """Environment of every process of ours: without a GPU DeepSpeed, which transformers imports, says so in
    a warning unless it is told first."""
    return {"DS_ACCELERATOR": "cpu"} if (hardware or detect()).device == "cpu" else {}


def engine_env(hardware: Hardware | None = None, workers: int = 1) -> dict[str, str]:
    """Environment of a process that will import vLLM; set it before the import.

    Raises ``ConfigError`` if there are fewer CPUs than ``workers`` that would compute on them.
    """
    hardware = hardware or detect()
    env = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        BOUND: "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    if hardware.device == "cpu":
        cpus = sorted(os.sched_getaffinity(0))
        if workers > len(cpus):
            raise ConfigError(
                f"an engine of {workers} workers wants a CPU for each, and here are {len(cpus)}"
            )
        env |= {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": str(hardware.cpus // workers),
            # By itself the engine keeps one CPU free and uses no hyper-threads: one thread of two CPUs.
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(
                ",".join(map(str, cpus[worker::workers])) for worker in range(workers)
            ),
            # The few compiled functions cost a C++ compiler's half minute and save nothing in eager mode.
            "TORCH_COMPILE_DISABLE": "1",
            # Numba looks n-grams up. It counts one CPU, as vLLM pins its worker to one of those above, and
            # over OpenMP it would leave the whole process one thread: 123 tokens/s instead of 190.
            "NUMBA_THREADING_LAYER": "workqueue",
        }
    return env


def give_way() -> None:
    """Let what is served, and whatever else there is, go first: in an actor this thread, and the threads and
    processes it starts from now on, get the processor time that nobody else wants."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return  # a process that called the library, and is not ours to slow down
    with suppress(PermissionError):  # some sandboxes allow no change at all
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def engine_slots(hardware: Hardware | None = None) -> int:
    """Requests that an engine works on at once; more of them wait."""
    return 32 if (hardware or detect()).device == "cpu" else 256


def engine_args(
    model_dir: Path,
    *,
    max_model_len: int,
    max_lora_rank: int | None = None,
    max_num_seqs: int | None = None,
    speculation: Speculation | None = None,
    draft_dir: Path | None = None,
    embeds: bool = False,
    hardware: Hardware | None = None,
) -> dict[str, Any]:
    """Keyword arguments of vLLM's ``AsyncEngineArgs`` for the model in ``model_dir``.

    ``max_model_len`` is in tokens. ``max_lora_rank`` None serves no adapters; ``max_num_seqs`` None means as
    many requests at once as ``engine_slots``. ``draft_dir`` holds the model that drafts, if ``speculation``
    names one. A model that ``embeds`` writes nothing, and keeps the precision vLLM gives it.
    """
    hardware = hardware or detect()
    args: dict[str, Any] = {
        "model": str(model_dir),
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs or engine_slots(hardware),
        "dtype": "bfloat16",
        "generation_config": "vllm",
        "trust_remote_code": False,
        "enable_log_requests": False,
    }
    if hardware.device == "cpu":
        # A seeded request whose prompt is prefilled in chunks kills vLLM's CPU engine (it rewinds a
        # CUDA generator's offset, gpu_model_runner.py), so prompts are prefilled whole.
        args |= {
            "enforce_eager": True,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(2048, max_model_len),
            "block_size": BLOCK_TOKENS,
        }
    if embeds:
        return args | {"runner": "pooling", "dtype": "auto"}
    if max_lora_rank is not None:
        args |= {"enable_lora": True, "max_lora_rank": _lora_rank_bucket(max_lora_rank), "max_loras": 4}
    if speculation is not None:
        args |= speculation_args(speculation, draft_dir, args["max_num_seqs"])
    return args


BLOCK_TOKENS = 32
"""Of the KV cache on a CPU, where vLLM takes 128: short texts are faster, and of a prompt that begins as
others do less is computed again, because only whole blocks are kept."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM 0.29.0 lays out adapter memory for; any adapter up to that rank fits."""


def _lora_rank_bucket(rank: int) -> int:
    for bucket in LORA_RANKS:
        if rank <= bucket:
            return bucket
    raise ConfigError(
        f"rank {rank} exceeds {LORA_RANKS[-1]}, the largest the engine can serve; lower lora.rank"
    )


def threads_per_worker(workers: int) -> int:
    """Compute threads for one of ``workers`` trainers; Ray's own default is one a logical CPU."""
    return max(1, detect().cpus // workers)

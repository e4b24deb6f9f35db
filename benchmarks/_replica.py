"""One replica as a process of its own, without Ray: ``python -m benchmarks._replica MODEL PORT TOTALS``.

Its engine is the served one; TOTALS is a JSON file of the prompt tokens it was given and found cached.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

TOKEN, MODEL = "benchmark", "b" * 64
VERSION = f"base@{MODEL[:8]}"


async def serve(model: Path, port: int, totals: Path) -> None:
    from serve_apps.door import Door, listen
    from serve_apps.metered import Usage
    from serve_apps.placing import Placing
    from serve_apps.replica import ReplicaApp
    from serve_apps.vllm_engine import VllmEngine

    counted = {"prompt": 0, "cached": 0}

    def ended(usage: Usage) -> None:
        counted["prompt"] += usage.prompt_tokens
        counted["cached"] += usage.cached_tokens
        totals.write_text(json.dumps(counted))

    engine = VllmEngine(
        model,
        [VERSION],
        max_model_len=1024,
        max_lora_rank=None,
        placing=Placing(max_num_seqs=8),
        max_tokens=64,
        ended=ended,
    )
    door = Door(ReplicaApp(engine, TOKEN, 64), listen("127.0.0.1", port))
    await door.closed()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))

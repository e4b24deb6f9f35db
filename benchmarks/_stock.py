"""Stock Ray Serve LLM as a process of its own: ``python -m benchmarks._stock MODEL PORT ENGINE_ARGUMENTS``.

Everything is at its default but the engine's arguments, which are a JSON object. Read in Ray 2.60.
"""

from __future__ import annotations

import json
import logging
import signal
import sys


def serve_stock(model: str, port: int, engine: dict[str, object]) -> None:
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    # Its ingress asks for a CPU beside the engine's one.
    ray.init(address="local", num_cpus=4, logging_level=logging.ERROR, log_to_driver=False)
    # Ray takes SIGTERM for itself; leaving the interpreter stops what was started here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = LLMConfig(
        model_loading_config={"model_id": "base", "model_source": model},
        accelerator_config={"kind": "cpu"},
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        engine_kwargs=engine,
    )
    serve.run(build_openai_app({"llm_configs": [config]}))
    signal.pause()


if __name__ == "__main__":
    serve_stock(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))

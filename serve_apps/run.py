"""Serve a promoted router until Ctrl-C.

python -m serve_apps.run --store ./forge --router live --port 8000
"""

from __future__ import annotations

import argparse
import time

from actors import polite_exit, ray_session


def main() -> None:
    parser = argparse.ArgumentParser(prog="largeforge serve", description="Serve a promoted router.")
    parser.add_argument("--store", default="./forge", help="a folder, or a URL such as s3://bucket/forge")
    parser.add_argument("--router", default="", help="key or name of a router artifact; default: the newest")
    parser.add_argument("--port", type=int, default=8000, help="port on loopback")
    parser.add_argument(
        "--max-replicas", type=int, default=1, help="engines an expert may grow to under load"
    )
    options = parser.parse_args()
    with polite_exit("the router has stopped"), ray_session(say) as session:
        from largeforge_ray.flow.doctor import require_port
        from serve_apps.forge import ForgeArgs
        from serve_apps.launch import newest_router, start, stop

        router = options.router or newest_router(options.store)
        args = ForgeArgs(store=options.store, router=router, max_replicas=options.max_replicas)
        require_port(options.port)
        session.connect()
        say("starting the router and its experts (about 40 s) …")
        started = time.monotonic()
        try:
            url = start(args, port=options.port)
            say(f"serving on {url}/v1 after {time.monotonic() - started:.1f} s (Ctrl-C stops it); try:")
            say(EXAMPLE.format(url=url))
            while True:
                time.sleep(3600)
        finally:
            stop(keep_serve=session.started_here)


def say(text: str) -> None:
    print(text, flush=True)


EXAMPLE = """  curl {url}/v1/chat/completions -H 'content-type: application/json' -d \\
    '{{"model": "auto", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'"""

if __name__ == "__main__":
    main()

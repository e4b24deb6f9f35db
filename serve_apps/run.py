"""Serve a promoted router until Ctrl-C.

python -m serve_apps.run --store ./forge --router live --port 8000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from actors import polite_exit, ray_session


def main() -> None:
    parser = argparse.ArgumentParser(prog="largeforge serve", description="Serve a promoted router.")
    parser.add_argument("--store", default="./forge", help="a folder, or a URL such as s3://bucket/forge")
    parser.add_argument("--router", default="", help="key or name of a router artifact; default: the newest")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than loopback want --keys"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--keys", help="file of API keys, made by `largeforge keys new NAME`")
    parser.add_argument("--admin-token", help="file of the token that opens /admin; without it there is none")
    parser.add_argument(
        "--min-replicas",
        type=int,
        default=1,
        help="engines an idle expert keeps; 0 starts one when it is asked",
    )
    parser.add_argument(
        "--max-replicas", type=int, default=1, help="engines an expert may grow to under load"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other argument of serve_apps.forge:build_app, such as routers=2; see docs/serving.md",
    )
    options = parser.parse_args()
    with polite_exit("the router has stopped"), ray_session(say) as session:
        from largeforge_ray.flow.doctor import require_port
        from largeforge_ray.keyfile import read_keys, read_token
        from serve_apps.forge import parse_args
        from serve_apps.keys import require_keys
        from serve_apps.launch import newest_router, start, stop

        require_keys(options.host, options.keys)
        if options.keys:
            read_keys(Path(options.keys))
        if options.admin_token:
            read_token(Path(options.admin_token))
        router = options.router or newest_router(options.store)
        keys, admin_token = (
            str(Path(f).resolve()) if f else None for f in (options.keys, options.admin_token)
        )
        args = parse_args(
            *options.set,
            store=options.store,
            router=router,
            host=options.host,
            port=options.port,
            min_replicas=options.min_replicas,
            max_replicas=max(1, options.min_replicas, options.max_replicas),
            keys=keys,
            admin_token=admin_token,
        )
        require_port(options.port)
        session.connect()
        say("starting the router and its experts (about 40 s) …")
        started = time.monotonic()
        try:
            url = start(args)
            say(f"serving on {url}/v1 after {time.monotonic() - started:.1f} s (Ctrl-C stops it); try:")
            say(EXAMPLE.format(url=url, key=KEY_HEADER if keys else ""))
            while True:
                time.sleep(3600)
        finally:
            stop(keep_serve=session.started_here)


def say(text: str) -> None:
    print(text, flush=True)


KEY_HEADER = "-H 'authorization: Bearer KEY' "
EXAMPLE = """  curl {url}/v1/chat/completions {key}-H 'content-type: application/json' -d \\
    '{{"model": "auto", "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'"""

if __name__ == "__main__":
    main()

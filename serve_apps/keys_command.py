"""Make, list and revoke API keys.

python -m serve_apps.keys_command new alice --requests-per-minute 60
"""

from __future__ import annotations

import argparse
from pathlib import Path

from actors import polite_exit


def main() -> None:
    parser = argparse.ArgumentParser(prog="largeforge keys", description="Make, list and revoke API keys.")
    parser.add_argument("--file", type=Path, default=Path("keys.yaml"), help="default: keys.yaml")
    commands = parser.add_subparsers(dest="command", required=True, metavar="new | list | revoke")
    new = commands.add_parser("new", help="make a key and print it, once: the file holds only its hash")
    new.add_argument("name", help="whose it is; it is named in logs and refusals")
    new.add_argument("--requests-per-minute", type=int, metavar="N")
    new.add_argument("--concurrency", type=int, metavar="N", help="requests under way at once")
    commands.add_parser("list", help="names and limits")
    revoke = commands.add_parser("revoke", help="a router that is started after it no longer knows the key")
    revoke.add_argument("name")
    options = parser.parse_args()
    with polite_exit():
        from serve_apps.keys import add_key, read_keys, revoke_key

        if options.command == "new":
            print(add_key(options.file, options.name, options.requests_per_minute, options.concurrency))
        elif options.command == "revoke":
            revoke_key(options.file, options.name)
        else:
            for key in read_keys(options.file):
                limits = {"requests a minute": key.requests_per_minute, "at once": key.concurrency}
                told = ", ".join(f"{n} {what}" for what, n in limits.items() if n)
                print(f"{key.name:<20} {told or 'no limits'}")


if __name__ == "__main__":
    main()

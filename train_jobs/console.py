"""What a person sees while a run is under way: a line a stage, and a bar while it works."""

from __future__ import annotations

import logging
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from largeforge_ray.observe import logs
from largeforge_ray.observe.words import point
from largeforge_ray.types import RunEvent

SHOWN = (
    "kept",
    "dropped",
    "right",
    "wrong",
    "failed",
    "loss",
    "rows_per_s",
    "tokens_per_s",
    "prefix_hits",
    "usd",
)


logger = logging.getLogger(__name__)


def open_console() -> Console | LogLines:
    """Where a run's events go: to a person's terminal, or into log lines with LARGEFORGE_LOG=json."""
    return LogLines() if logs.wanted() else Console()


class LogLines:
    """A run's events as JSON lines on standard output; numbers that are lists or tables stay in the store."""

    def __init__(self) -> None:
        logs.dress_handlers()

    def say(self, text: str) -> None:
        logger.info(text)

    def listen(self, event: RunEvent) -> None:
        """Log one event, and let what other loggers say from here on carry its run and stage."""
        logs.configure(run=event.run, stage=event.stage)
        numbers = {k: v for k, v in event.numbers.items() if isinstance(v, int | float | str)}
        level = logging.ERROR if event.kind == "failed" else logging.INFO
        logger.log(
            level, event.message or event.kind, extra={"facts": {"kind": event.kind, "numbers": numbers}}
        )

    def close(self) -> None:
        """Nothing is held back."""


class Console:
    """Listens to run events. Without a terminal it prints a line every tenth of the work instead of a bar."""

    def __init__(self) -> None:
        self.terminal = Terminal(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._tenth = -1

    def say(self, text: str, style: str | None = None) -> None:
        self.terminal.print(text, style=style, markup=False)

    def listen(self, event: RunEvent) -> None:
        """Show one event."""
        if event.kind == "progress":
            self._progress(event)
            return
        self.close()
        if event.kind == "started":
            self.say(f"  {event.stage:<10} …")
        elif event.kind == "cached":
            self.say(f"  {event.stage:<10} cached    {event.message}", "dim")
        elif event.kind == "failed":
            self.say(f"  {event.stage:<10} failed", "red")
        elif event.kind == "finished":
            phases = ", ".join(f"{k} {v:.1f}" for k, v in event.numbers.get("phases", {}).items())
            seconds = f"{event.numbers['seconds']:.1f} s" + (f" ({phases})" if phases else "")
            self.say(f"  {event.stage:<10} done      {event.message}  {seconds}", "green")
            if line := summary(event.numbers):
                self.say(f"  {'':<10}           {line}")

    def _progress(self, event: RunEvent) -> None:
        n = event.numbers
        total, done = n.get("total", n.get("steps")), n.get("done", n.get("step", 0))
        if event.message:
            self.say(f"  {'':<10} {event.message}")
        if not total:
            return
        shown = "  ".join(f"{k.replace('_per_s', '/s')} {n[k]:g}" for k in SHOWN if k in n)
        if self.terminal.is_terminal:
            self._draw(event.stage, done, total, shown)
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self.say(f"  {event.stage:<10} {done}/{total}  {shown}")

    def _draw(self, stage: str, done: int, total: int, shown: str) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn("  {task.description:<10}"),
                BarColumn(bar_width=30),
                TextColumn("{task.completed:.0f}/{task.total:.0f}  {task.fields[shown]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.terminal,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(stage, total=total, shown=shown)
        self._bar.update(self._task, completed=done, total=total, shown=shown)

    def close(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._tenth = None, -1


def summary(numbers: dict[str, Any]) -> str:
    """A finished stage's result in one line."""
    if "candidates" in numbers:
        parts = [
            f"{k} {v['accuracy']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for k, v in numbers["candidates"].items()
        ]
        parts += [
            f"gain of {k} {v['gain']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]"
            for k, v in numbers["gains"].items()
        ]
        return ", ".join(parts)
    if "reasons" in numbers:
        reasons = ", ".join(f"{k} {v}" for k, v in numbers["reasons"].items())
        counts = f"kept {numbers['kept']}, dropped {numbers['dropped']}, failed {numbers['failed']}"
        return f"{counts}; {numbers['rows']} different rows" + (f" (dropped: {reasons})" if reasons else "")
    if "trials" in numbers:
        stopped = sum(t["stopped"] for t in numbers["trials"])
        best = point(numbers["best"])
        held_out = numbers["held_out"]["after"]["loss"]
        counts = f"{len(numbers['trials'])} trials, {stopped} stopped early"
        return f"{counts}; best {best}: held-out loss {held_out:.4f}"
    if "final_loss" in numbers:
        line = f"{numbers['steps']} steps, loss {numbers['losses'][0][1]:.3f} -> {numbers['final_loss']:.3f}"
        if after := numbers.get("held_out", {}).get("after"):
            before = numbers["held_out"]["before"]
            shared = [k for k in ("loss", "accuracy") if k in after]
            line += "; held out " + ", ".join(f"{k} {before[k]:.3f} -> {after[k]:.3f}" for k in shared)
        return line
    if "live" in numbers:
        return f"live: {', '.join(numbers['live'])}"
    if "train" in numbers:
        return f"{numbers['train']} train, {numbers['test']} held out"
    return ""

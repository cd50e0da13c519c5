"""Runs checks and timings in processes of their own: a crash, or a hang, costs what ran only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

from bench.machine import ROOT

POLL_SECONDS = 0.2
Command = Callable[[Path, Sequence[str]], list[str]]  # (results, items) -> what to run


@dataclass
class Worker:
    """One process, the items it was given, and where it writes a line of JSON for each."""

    items: list[str]
    results: Path
    log: Path
    process: subprocess.Popen | None = None
    done: dict[str, dict] = field(default_factory=dict)

    def start(self, command: Command) -> None:
        """Run the items that are not done."""
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command(self.results, self.left()), cwd=ROOT, stdout=log, stderr=log
            )

    def left(self) -> list[str]:
        """Items without a result."""
        return [item for item in self.items if item not in self.done]

    def collect(self) -> bool:
        """Read what is there; whether there was anything new."""
        before = len(self.done)
        text = self.results.read_text("utf-8") if self.results.exists() else ""
        # what follows the last newline is still being written
        for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
            self.done.setdefault(line.pop("nodeid"), line)
        return len(self.done) > before

    def give_up(self, why: str, outcome: str = "failed") -> None:
        """The item that ran at the end, the last one in the log, gets no other result."""
        said = self.log.read_text("utf-8", errors="replace")
        item = max(self.left(), key=said.rfind)
        self.done[item] = {"outcome": outcome, "message": f"{why}: {last_words(said)}"}


def run_items(
    groups: Sequence[Sequence[str]], command: Command, folder: Path, workers: int, deadline: float
) -> dict[str, dict]:
    """A result for every item; "not run" for those without a turn before the deadline."""
    shares = ([item for group in groups[at::workers] for item in group] for at in range(workers))
    everyone = [
        Worker(items, folder / f"{at}.jsonl", folder / f"{at}.log")
        for at, items in enumerate(share for share in shares if share)
    ]
    for worker in everyone:
        worker.start(command)
    running = list(everyone)
    while running and monotonic() < deadline:
        sleep(POLL_SECONDS)
        for worker in [w for w in running if w.process.poll() is not None]:
            code = worker.process.returncode
            # pytest ended by itself if all passed, some failed, or the device was lost; anything
            # else, or nothing new, is a crash
            wrote = worker.collect() and code in (0, 1, 2)
            if worker.left() and not wrote:
                worker.give_up(f"the process ended with {code}")
            if worker.left():
                worker.start(command)
            else:
                running.remove(worker)
    for worker in running:
        worker.process.kill()
        worker.process.wait()
        worker.collect()
        if worker.left():
            worker.give_up("not finished in time", "not run")
        for item in worker.left():
            worker.done[item] = {"outcome": "not run", "message": "out of time"}
    found = {item: line for worker in everyone for item, line in worker.done.items()}
    return {item: found[item] for group in groups for item in group}


def run_group(
    command: list[str], seconds: float, environment: Mapping[str, str] | None = None
) -> tuple[str, int | None]:
    """What a command and its children print, and its code; None if it had to be stopped."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the command, and what it started
        output, _ = process.communicate()
        return output, None
    return output, process.returncode


def run_for(command: list[str], seconds: float) -> str:
    """Run a command for that long; why it did not end well, empty if it did."""
    output, code = run_group(command, seconds)
    if code is None:
        return f"stopped after {seconds:.0f} s"
    return f"ended with {code}: {last_words(output)}" if code else ""


def last_words(output: str) -> str:
    """The end of what was printed, on one line."""
    return " ".join(output.split())[-400:]


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of bench."""
    return [sys.executable, "-m", module, *map(str, arguments)]

"""Runs checks and timings in processes of their own: a crash, or a hang, costs what ran only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic, sleep
from typing import IO

from bench.machine import ROOT

POLL_SECONDS = 0.2
Command = Callable[[Path, Sequence[str]], list[str]]  # (results, items) -> what to run
Note = Callable[[dict[str, dict]], None]  # is told of results as they come
Say = Callable[[str], None]


@dataclass
class Worker:
    """One process, the items it was given, and where it writes a line of JSON for each."""

    items: list[str]
    results: Path
    log: Path
    process: subprocess.Popen | None = None
    before: int = 0  # results when its process was started
    done: dict[str, dict] = field(default_factory=dict)

    def start(self, command: Command) -> None:
        """Run the items that are not done."""
        self.before = len(self.done)
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command(self.results, self.left()), cwd=ROOT, stdout=log, stderr=log
            )

    def left(self) -> list[str]:
        """Items without a result."""
        return [item for item in self.items if item not in self.done]

    def collect(self) -> None:
        """Read what is there."""
        text = self.results.read_text("utf-8") if self.results.exists() else ""
        # what follows the last newline is still being written
        for line in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
            self.done.setdefault(line.pop("nodeid"), line)

    def ended(self, command: Command) -> bool:
        """Its process has ended by itself: whether there is nothing left to do."""
        # pytest ended by itself if all passed, some failed, or the device was lost; anything
        # else, or nothing new, is a crash
        code = self.process.returncode
        if self.left() and not (len(self.done) > self.before and code in (0, 1, 2)):
            self.give_up(f"the process ended with {code}")
        if self.left():
            self.start(command)
            return False
        return True

    def give_up(self, why: str, outcome: str = "failed") -> None:
        """The item that ran at the end, the last one in the log, gets no other result."""
        said = self.log.read_text("utf-8", errors="replace")
        item = max(self.left(), key=said.rfind)
        self.done[item] = {"outcome": outcome, "message": f"{why}: {last_words(said)}"}


def run_items(
    groups: Sequence[Sequence[str]],
    command: Command,
    folder: Path,
    workers: int,
    deadline: float,
    note: Note,
) -> None:
    """A result for every item; "not run" for those without a turn before the deadline."""
    shares = ([item for group in groups[at::workers] for item in group] for at in range(workers))
    everyone = [
        Worker(items, folder / f"{at}.jsonl", folder / f"{at}.log")
        for at, items in enumerate(share for share in shares if share)
    ]
    told: set[str] = set()

    def tell() -> None:
        done = {item: line for worker in everyone for item, line in worker.done.items()}
        new = {item: line for item, line in done.items() if item not in told}
        if new:
            note(new)
            told.update(new)

    for worker in everyone:
        worker.start(command)
    running = list(everyone)
    while running and monotonic() < deadline:
        sleep(POLL_SECONDS)
        for worker in list(running):
            over = worker.process.poll() is not None
            worker.collect()
            if over and worker.ended(command):
                running.remove(worker)
        tell()
    for worker in running:
        worker.process.kill()
        worker.process.wait()
        worker.collect()
        if worker.left():
            worker.give_up("not finished in time", "not run")
        for item in worker.left():
            worker.done[item] = {"outcome": "not run", "message": "out of time"}
    tell()


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


def run_lines(command: list[str], seconds: float, silence: float, say: Say) -> str:
    """Run a command, and pass its lines on; why it did not end well, empty if it did.

    It is stopped after so many seconds, or when it has said nothing for `silence` seconds.
    """
    end = monotonic() + max(1.0, seconds)
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        lines: Queue[str | None] = Queue()
        Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
        problem = _follow(lines, end, silence, say)
        if problem:
            os.killpg(process.pid, signal.SIGKILL)  # the command, and what it started
        code = process.wait()
        errors.seek(0)
        return problem or (f"ended with {code}: {last_words(errors.read())}" if code else "")


def _pass_on(stream: IO[str], lines: Queue[str | None]) -> None:
    for line in stream:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _follow(lines: Queue[str | None], end: float, silence: float, say: Say) -> str:
    """Say every line until there is none; why it was given up, empty if the lines ended."""
    start = monotonic()
    while True:
        left = end - monotonic()
        try:
            line = lines.get(timeout=max(0.0, min(left, silence)))
        except Empty:
            waited = f"stopped after {monotonic() - start:.0f} s"
            return waited if left <= silence else f"said nothing for {silence:.0f} s"
        if line is None:
            return ""
        say(line)


def last_words(output: str) -> str:
    """The end of what was printed, on one line."""
    return " ".join(output.split())[-400:]


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of bench."""
    return [sys.executable, "-m", module, *map(str, arguments)]

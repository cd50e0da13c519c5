"""Runs checks and timings in processes of their own: a crash, or a hang, costs what it ran only."""

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
Command = Callable[[Path, Sequence[str]], list[str]]  # (results, cases) -> what to run


@dataclass
class Worker:
    """One process, the cases it was given, and where it writes."""

    cases: list[str]
    results: Path
    log: Path
    process: subprocess.Popen | None = None
    done: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self, command: Command) -> None:
        """Run the cases that are not done."""
        with self.log.open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                command(self.results, self.left()), cwd=ROOT, stdout=log, stderr=log
            )

    def left(self) -> list[str]:
        """Cases without a result."""
        return [case for case in self.cases if case not in self.done]

    def collect(self) -> bool:
        """Read what is there; whether there was anything new."""
        before = len(self.done)
        text = self.results.read_text("utf-8") if self.results.exists() else ""
        # what follows the last newline is still being written
        for row in map(json.loads, text[: text.rfind("\n") + 1].splitlines()):
            self.done.setdefault(row.pop("key"), row)
        return len(self.done) > before

    def give_up(self, why: str, passed: str = "no") -> None:
        """The case that ran when the process ended gets no other result."""
        key = self.left()[0]
        said = last_words(self.log.read_text("utf-8", errors="replace"))
        self.done[key] = unfinished(key, passed, f"{why}: {said}")


def unfinished(key: str, passed: str, detail: str) -> dict[str, str]:
    """The row of a case that gave none itself."""
    op, case = key.split("/", 1)
    return {"op": op, "case": case, "checks": "", "passed": passed, "detail": detail}


def run_checks(
    keys: Sequence[str], command: Command, folder: Path, workers: int, deadline: float
) -> list[dict[str, str]]:
    """A row for every case; those that did not get their turn before the deadline say "not run"."""
    shares = (list(keys[at::workers]) for at in range(workers))
    running = []
    for at, cases in enumerate(share for share in shares if share):
        worker = Worker(cases, folder / f"{at}.jsonl", folder / f"{at}.log")
        worker.start(command)
        running.append(worker)
    everyone = list(running)
    while running and monotonic() < deadline:
        sleep(POLL_SECONDS)
        for worker in [w for w in running if w.process.poll() is not None]:
            code = worker.process.returncode
            # 0 and 1 say what it has written; anything else, or nothing new, is a crash
            wrote = worker.collect() and code in (0, 1)
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
        for key in worker.left():
            worker.done[key] = unfinished(key, "not run", "out of time")
    found = {key: row for worker in everyone for key, row in worker.done.items()}
    return [found[key] for key in keys]


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

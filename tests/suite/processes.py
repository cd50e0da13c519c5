"""Tests that need a process of their own, reported one by one as though they had run in this one.

An item marked `process(KIND)` runs in a pytest whose environment is that of the kind. One starts
for each kind, two for the one with the most to do, when collection ends, is told its items in
order, and sends their reports line by line; this session runs its own items first and then logs
those. A process that dies fails the item it was at, and another one goes on with the rest. In a
process whose environment is already that of a kind, such as `TRITON_INTERPRET=1 pytest tests/suite
-k ...`, that kind's items run directly.

Those of the kind `beside` need nothing: they take long, and run in a second process like this one
so that neither waits for the other. In a session that has nothing else of its own they run here.
"""

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

KINDS = {
    "interpreted": {"TRITON_INTERPRET": "1"},
    "emulated": {"MCR_FAST_EMULATED": "1"},
    "launched": {"MCR_FAST_LAUNCHED": "1", "TRITON_INTERPRET": "0"},
    "beside": {},
}
# the first that is set counts: launchers are told that kernels are interpreted
SIGNS = {"launched": "MCR_FAST_LAUNCHED", "interpreted": "TRITON_INTERPRET"}
SIGNS["emulated"] = "MCR_FAST_EMULATED"
SHARED = {"interpreted": 2}  # kinds whose items take so long that several processes share them
FEW = 100  # items that one process runs on its own
BEHIND = 3  # how much nicer they are than the first process, which would else be alone at the end
LAST_WORDS = 4000  # characters of a dead process's output


def current() -> str | None:
    """The kind of this process; None for the one that runs everything else."""
    return next((k for k, name in SIGNS.items() if os.environ.get(name, "0") != "0"), None)


def kind_of(item: pytest.Item) -> str | None:
    """The kind of process that an item needs, None for any."""
    mark = item.get_closest_marker("process")
    return mark.args[0] if mark else None


def missing(kind: str) -> str | None:
    """Why there can be no such process here."""
    if kind == "beside":
        return None
    if kind != "emulated":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if not (Path(__file__).resolve().parents[2] / "csrc").is_dir():
        return "no sources to emulate"
    if platform.machine() != "x86_64":
        return "float16 is emulated with F16C"
    return None if shutil.which("c++") else "no C++ compiler"


class Worker:
    """A process of one kind: the items it has been given, and the reports it has sent."""

    def __init__(self, kind: str, nodeids: Sequence[str], options: Sequence[str], root: Path):
        self.left = list(nodeids)
        self.reports: dict[str, list[dict]] = {nodeid: [] for nodeid in nodeids}
        self.crashes: dict[str, str] = {}
        self._kind, self._options, self._root = kind, options, root
        self._changed = threading.Condition()
        self._process: subprocess.Popen | None = None
        self._stopped = False
        threading.Thread(target=self._run, daemon=True).start()

    def wait(self, nodeid: str) -> None:
        """Returns when an item is done."""
        with self._changed:
            self._changed.wait_for(lambda: nodeid not in self.left)

    def stop(self) -> None:
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _run(self) -> None:
        while self.left and not self._stopped:
            with tempfile.TemporaryDirectory() as folder:
                at, output = self._run_once(Path(folder))
            with self._changed:
                # where not one item started, none would in another process either
                lost = self.left if at is None else [n for n in self.left if n == at]
                self.crashes |= dict.fromkeys(lost, output[-LAST_WORDS:])
                self.left = [n for n in self.left if n not in lost]
                self._changed.notify_all()

    def _run_once(self, folder: Path) -> tuple[str | None, str]:
        """The item that a process was at when it ended, and what it printed."""
        (folder / "items").write_text("\n".join(self.left), encoding="utf-8")
        files = dict.fromkeys(nodeid.partition("::")[0] for nodeid in self.left)
        read, write = os.pipe()
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *self._options, *files]
        command += ["--items", str(folder / "items"), "--reports", str(write)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | KINDS[self._kind]
        log = folder / "log"
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command, cwd=self._root, env=environment, stdout=out, stderr=out, pass_fds=[write]
            )
        os.close(write)
        if self._stopped:
            self._process.kill()
        at = None
        with os.fdopen(read, encoding="utf-8") as lines:
            for line in lines:
                at = self._take(json.loads(line))
        code = self._process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        return at, f"the {self._kind} process ended with {code}:\n{text}"

    def _take(self, message: dict) -> str:
        """Keeps what a process says; the item it is about."""
        nodeid = message["nodeid"]
        with self._changed:
            if "report" in message:
                self.reports[nodeid].append(message["report"])
            elif message["end"]:
                self.left.remove(nodeid)
                self._changed.notify_all()
            else:
                self.reports[nodeid].clear()
        return nodeid


class Sender:
    """In a worker: runs the items it is told to, and sends their reports."""

    def __init__(self, config: pytest.Config):
        self._config = config
        self._items = Path(config.option.items).read_text(encoding="utf-8").splitlines()
        self._out = os.fdopen(config.option.reports, "w", buffering=1, encoding="utf-8")
        os.nice(BEHIND)

    def _send(self, nodeid: str, **message) -> None:
        self._out.write(json.dumps({"nodeid": nodeid, **message}, default=str) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = {item.nodeid: item for item in items}
        items[:] = [known[nodeid] for nodeid in self._items]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._send(nodeid, end=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._send(report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._send(nodeid, end=True)


class Receiver:
    """In the main session: starts the workers, and logs their reports."""

    def __init__(self, config: pytest.Config):
        self._config = config
        self._workers: dict[str, Worker] = {}  # by item
        self._here: set[str | None] = {None}  # the kinds that run in this process

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        here = current()
        if here is not None:  # one kind only, as by hand
            others = [item for item in items if kind_of(item) != here]
            self._config.hook.pytest_deselected(items=others)
            items[:] = [item for item in items if kind_of(item) == here]
        self._here = {None, here}
        if all(kind_of(item) for item in items):
            self._here.add("beside")
        reasons = {kind: missing(kind) for kind in KINDS}
        for item in items:
            if reasons.get(kind_of(item)):
                item.add_marker(pytest.mark.skip(reason=reasons[kind_of(item)]))
        items.sort(key=self._is_elsewhere)

    def _is_elsewhere(self, item: pytest.Item) -> bool:
        return kind_of(item) not in self._here and not item.get_closest_marker("skip")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if session.config.option.collectonly:
            return
        chosen: dict[str, list[str]] = {}
        for item in filter(self._is_elsewhere, session.items):
            chosen.setdefault(kind_of(item), []).append(item.nodeid)
        options = ["--slow"] if session.config.option.slow else []
        for kind, nodeids in chosen.items():
            count = SHARED.get(kind, 1) if len(nodeids) > FEW else 1
            for first in range(count):
                share = nodeids[first::count]
                worker = Worker(kind, share, options, self._config.rootpath)
                self._workers |= dict.fromkeys(share, worker)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if not self._is_elsewhere(item):
            return None
        worker, hook, nodeid = self._workers[item.nodeid], item.ihook, item.nodeid
        hook.pytest_runtest_logstart(nodeid=nodeid, location=item.location)
        worker.wait(nodeid)
        for data in worker.reports[nodeid]:
            if isinstance(data["longrepr"], list):  # of a skip, a tuple before it was JSON
                data["longrepr"] = tuple(data["longrepr"])
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=data
            )
            hook.pytest_runtest_logreport(report=report)
        if nodeid in worker.crashes:
            end = worker.crashes[nodeid]
            report = pytest.TestReport(nodeid, item.location, {}, "failed", end, "call")
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        for worker in set(self._workers.values()):
            worker.stop()


class Results:
    """A line of JSON for every item, written at once: nodeid, outcome, message, seconds."""

    def __init__(self, path: Path):
        self._path = path
        self._lines: dict[str, dict] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        line = self._lines.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        line["seconds"] += report.duration
        if report.outcome != "passed" and line["outcome"] != "failed":
            line["outcome"] = report.outcome
            crash = getattr(report.longrepr, "reprcrash", None)
            message = f"{crash.path}:{crash.lineno}: {crash.message}" if crash else report.longrepr
            line["message"] = str(message[2] if isinstance(message, tuple) else message)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"nodeid": nodeid, **self._lines.pop(nodeid)}) + "\n")


def add_options(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="of tests/suite")
    parser.addoption("--results", type=Path, help="a file that gets a line of JSON for every test")
    parser.addoption("--items", help="used between processes: a file with the items to run")
    parser.addoption("--reports", type=int, help="used between processes: where reports go")


def configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Sender(config) if config.option.items else Receiver(config))
    if config.option.results:
        config.pluginmanager.register(Results(config.option.results))

"""Test files that need a process of their own, which runs beside the other tests."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The other tests keep a core or two busy.
_pool = ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 1) // 2))
_running = set()
_stopped = False


class OwnProcess:
    """One test file, the environment variables that it needs, and how its run ended."""

    def __init__(self, path, **variables):
        self.path = path
        self._environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        self._future = None

    def start(self):
        self._future = _pool.submit(self._run)

    def check(self):
        """Waits for the run, and raises AssertionError with its output unless it passed."""
        returncode, output = self._future.result() if self._future else self._run()
        assert returncode == 0, output

    def _run(self):
        with subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(self.path)],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            _running.add(process)
            if _stopped:
                process.kill()
            output, _ = process.communicate()
            _running.discard(process)
        return process.returncode, output


def stop():
    """Ends what still runs, when nobody will ask for it any more."""
    global _stopped
    _stopped = True
    _pool.shutdown(wait=False, cancel_futures=True)
    for process in list(_running):
        process.kill()

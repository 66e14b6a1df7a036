"""Where the work of a benchmark is done: an `Engine` takes jobs and gives back what came of them.

`ProcessEngine` runs them in processes of this machine. Another engine (a cluster, say) has to offer the same
four members; jobs are picklable calls of module-level functions, and read and write below one shared folder.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from offmarl.errors import OffmarlError

Work = Callable[[], Any]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 5.0  # seconds a process has to end before it is killed


@dataclass(frozen=True)
class Finished:
    """The end of a job: its value, or why there is none."""

    key: str
    seconds: float
    value: Any = None
    error: str | None = None
    traceback: str | None = None  # of errors that are not meant for the reader


class Engine(Protocol):
    """Runs jobs, at most `slots` at a time."""

    @property
    def slots(self) -> int:
        """How many jobs may be under way."""

    def submit(self, key: str, work: Work) -> None:
        """Start a job; the caller sees to it that there is a free slot."""

    def wait(self) -> list[Finished]:
        """Wait for at least one job to end, however it ends."""

    def close(self) -> None:
        """Stop whatever still runs."""


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class ProcessEngine:
    """One process a slot, started when first needed and kept; each computes on one thread.

    A process that dies (out of memory, killed) fails its own job and is replaced. If this process dies, its
    workers end with it.
    """

    def __init__(self, jobs: int) -> None:
        self.slots = jobs
        self._context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._idle: list[_Worker] = []
        self._running: dict[Connection, tuple[str, _Worker]] = {}

    def submit(self, key: str, work: Work) -> None:
        """Hand the job to an idle process, or to a new one."""
        self._idle = [worker for worker in self._idle if worker.process.is_alive()]
        worker = self._idle.pop() if self._idle else self._start()
        worker.connection.send((key, work))
        self._running[worker.connection] = key, worker

    def wait(self) -> list[Finished]:
        """Collect what has ended."""
        finished = []
        for connection in wait(list(self._running)):
            assert isinstance(connection, Connection)
            key, worker = self._running.pop(connection)
            try:
                finished.append(connection.recv())
                self._idle.append(worker)
            except (EOFError, ConnectionError):
                worker.process.join()
                finished.append(Finished(key, 0.0, error=_obituary(worker.process)))
        return finished

    def close(self) -> None:
        """End the processes, those with a job too."""
        workers = self._idle + [worker for _, worker in self._running.values()]
        self._idle, self._running = [], {}
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(GRACE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), name="offmarl-bench")
        process.start()
        theirs.close()  # so that its death closes the pipe
        return _Worker(process, ours)


def _obituary(process: BaseProcess) -> str:
    code = process.exitcode or 0
    if code == -signal.SIGKILL:
        return "its process was killed, perhaps because the memory was full: try fewer --jobs"
    return f"its process died with exit code {code}"


def _serve(connection: Connection) -> None:
    """Do one job after another until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who then ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            key, work = connection.recv()
        except EOFError:
            return
        connection.send(attempt(key, work))


def attempt(key: str, work: Work) -> Finished:
    """Do a job here and now; an error ends in the answer."""
    started = time.perf_counter()
    value, message, trace = None, None, None
    try:
        value = work()
    except OffmarlError as error:
        message = str(error)
    except Exception as error:
        message, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    return Finished(key, time.perf_counter() - started, value, message, trace)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # files are written so that they survive this

"""A pool of worker processes that can kill any item.

A verifier may hang while it holds the interpreter's lock, crash, or take all memory on a model's
text. It runs in a process of its own; the parent watches the clock and kills the process group. The
pool uses no signals and no alarms, so any thread may call it.
"""

import json
import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from whet.errors import RewardError
from whet.sandbox.worker import START_SECONDS, Worker, start

WINDOW = 8  # items sent ahead to one worker, so that it never waits for the parent
STARTS = 3  # so many deaths during start-up, one after the other, end a call
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of an item: `value` is its JSON, None unless the status is ok.

    `seconds` is wall-clock time.
    """

    status: Literal["ok", "timeout", "error"]
    value: Any = None
    message: str = ""
    seconds: float = 0.0


def _close(owner: int, workers: list[Worker]) -> None:
    for worker in workers:
        if owner == os.getpid():
            worker.kill()
        else:  # we are a fork: the workers are our parent's
            worker.discard()
    workers.clear()


class Pool:
    """`processes` workers; each imports `function` ("module:function") once, then answers items.

    `seconds` is the wall-clock limit of an item, `memory_mb` the memory of a worker beyond its
    imports. Items and results are JSON; a result has at most 4 MiB. A worker inherits a few harmless
    variables of the environment, and `env`. `with`, `close()` or the end of the program closes the
    pool; no worker outlives its parent, however the parent ends.

    Raises RewardError for limits that are not above 0 and for a name that is not module:function.

    >>> with Pool("math:factorial", processes=1, seconds=5) as pool:
    ...     [(r.status, r.value) for r in pool.map([5, -1])]
    [('ok', 120), ('error', None)]
    """

    def __init__(
        self,
        function: str,
        processes: int = 2,
        seconds: float = 2.0,
        memory_mb: int = 2048,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if processes < 1 or seconds <= 0 or memory_mb < 1:
            raise RewardError(
                f"worker pool: processes {processes}, seconds {seconds} and memory_mb {memory_mb} "
                f"must be above 0"
            )
        if function.count(":") != 1 or not all(
            part.isidentifier() for part in function.replace(":", ".").split(".")
        ):
            raise RewardError(f"worker pool: {function!r} is not of the form module:function")
        self.function, self.processes = function, processes
        self.seconds, self.memory_mb = seconds, memory_mb
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self.env = {**inherited, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **(env or {})}
        self._lock = threading.Lock()
        self._adopt()

    def _adopt(self) -> None:
        """Makes this process the owner of the workers to come."""
        self._owner: int = os.getpid()
        self.workers: list[Worker] = []
        self._finalizer = weakref.finalize(self, _close, self._owner, self.workers)

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers. A later `map` starts new ones."""
        with self._lock:
            _close(self._owner, self.workers)

    def start(self) -> None:
        """Starts the workers' imports, without waiting for them."""
        with self._lock:
            self._prepare(self.processes)

    def map(self, items: Sequence[Any]) -> list[Result]:
        """N items -> N results, in order; calls from several threads take turns.

        Raises RewardError where the function cannot be imported or workers do not start, TypeError
        where an item is not JSON.
        """
        lines = [
            b"[%d, %s]\n" % (number, json.dumps(item).encode()) for number, item in enumerate(items)
        ]
        if not lines:
            return []
        with self._lock:
            self._prepare(min(self.processes, len(lines)))
            try:
                return _Call(self, lines).run()
            finally:
                # After an interruption, their answers would count as the next call's.
                for worker in [w for w in self.workers if w.pending]:
                    self.drop(worker)

    def _prepare(self, wanted: int) -> None:
        if self._owner != os.getpid():
            self._finalizer()
            self._adopt()
        for worker in [w for w in self.workers if w.process.poll() is not None]:
            self.drop(worker)
        for worker in self.workers:
            worker.since = time.monotonic()
        self.fill_up(wanted)

    def fill_up(self, wanted: int) -> None:
        while len(self.workers) < wanted:
            self.workers.append(start(self.function, self.memory_mb, self.env))

    def drop(self, worker: Worker) -> int:
        """Kills the worker and forgets it. Returns its exit code."""
        self.workers.remove(worker)
        return worker.kill()


def parsed(line: bytes) -> dict[str, Any]:
    """A worker's reply; a line that cannot be read (nesting, endless digits) becomes an error."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {"error": f"the result cannot be read back: {error}"}
    return reply if isinstance(reply, dict) else {"error": "the worker answers out of step"}


class _Call:
    """One call of `map`. An item's clock runs while it is the first pending one of its worker."""

    def __init__(self, pool: Pool, lines: list[bytes]) -> None:
        self.pool, self.lines = pool, lines
        self.wanted = min(pool.processes, len(lines))
        self.waiting = deque(range(len(lines)))
        self.results: dict[int, Result] = {}
        self.failed_starts = 0

    def run(self) -> list[Result]:
        while len(self.results) < len(self.lines):
            for worker in self.pool.workers:
                self.feed(worker)
            self.wait()
            for worker in list(self.pool.workers):
                self.watch(worker)
            # Also after the last item, so that the next call has workers ready.
            self.pool.fill_up(self.wanted)
        return [self.results[number] for number in range(len(self.lines))]

    def feed(self, worker: Worker) -> None:
        window = max(1, min(WINDOW, len(self.waiting) // self.wanted))
        while worker.ready and self.waiting and len(worker.pending) < window:
            number = self.waiting.popleft()
            if not worker.pending:
                worker.since = time.monotonic()
            worker.pending.append(number)
            worker.unsent += self.lines[number]
        worker.write()

    def limit(self, worker: Worker) -> float:
        """Seconds that the worker may take for its start-up or its first pending item."""
        if worker.ready:
            return self.pool.seconds if worker.pending else float("inf")
        return START_SECONDS

    def wait(self) -> None:
        """Waits until a worker has output, can take input, or has run out of time."""
        poll = select.poll()
        for worker in self.pool.workers:
            poll.register(worker.stdout, select.POLLIN)
            if worker.unsent:
                poll.register(worker.stdin, select.POLLOUT)
        left = (
            min(worker.since + self.limit(worker) for worker in self.pool.workers)
            - time.monotonic()
        )
        poll.poll(min(max(0.0, left), 3600.0) * 1000 + 1)

    def watch(self, worker: Worker) -> None:
        """Takes the worker's answers; replaces it if it has ended or its time is over."""
        lines, ended = worker.read()
        for line in lines:
            if not self.take(worker, line):
                return
        elapsed = time.monotonic() - worker.since
        if ended:
            self.ended(worker, elapsed)
        elif elapsed > self.limit(worker):
            if not worker.ready:
                raise RewardError(
                    f"worker for {self.pool.function}: its imports took over {START_SECONDS:.0f} s"
                )
            message = f"killed after {elapsed:.1f} s (limit {self.pool.seconds:g} s)"
            self.results[worker.pending.popleft()] = Result(
                "timeout", message=message, seconds=elapsed
            )
            self.retire(worker)

    def take(self, worker: Worker, line: bytes) -> bool:
        """Takes one line of the worker. Returns False if it retired the worker."""
        reply = parsed(line)
        if not worker.ready:
            if "failed" in reply:
                raise RewardError(f"worker function {self.pool.function}: {reply['failed']}")
            worker.ready, self.failed_starts = True, 0
            return True
        if not worker.pending:  # a line that nobody asked for
            self.retire(worker)
            return False
        number = worker.pending.popleft()
        worker.since = time.monotonic()
        if reply.get("item") == number and "value" in reply:
            self.results[number] = Result("ok", reply["value"], seconds=reply["seconds"])
        else:
            message = str(reply.get("error", "the worker answers out of step"))
            self.results[number] = Result(
                "error", message=message, seconds=reply.get("seconds", 0.0)
            )
        if reply.get("last") or reply.get("item") != number:
            self.retire(worker)
            return False
        return True

    def ended(self, worker: Worker, elapsed: float) -> None:
        ready = worker.ready
        first = worker.pending.popleft() if worker.pending else None
        code = self.retire(worker)
        reason = f"the worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        if first is not None:
            self.results[first] = Result("error", message=reason, seconds=elapsed)
        if not ready:
            self.failed_starts += 1
            if self.failed_starts == STARTS:
                raise RewardError(
                    f"worker for {self.pool.function}: {reason} {STARTS} times during start-up"
                )

    def retire(self, worker: Worker) -> int:
        """Kills the worker; the items that it had not begun go to the next free worker."""
        self.waiting.extendleft(reversed(worker.pending))
        worker.pending.clear()
        return self.pool.drop(worker)

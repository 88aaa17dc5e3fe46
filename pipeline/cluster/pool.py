"""Actors that work through a list of tasks, whatever becomes of single workers and nodes."""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayActorError, RayError

from dclip.words import told
from pipeline.cluster.session import cause
from pipeline.terminal.errors import StageError

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # losses of a worker that one task may outlive
_IN_FLIGHT = 2  # tasks a worker holds: one in the network, one on its way in or out
_PATIENCE_SECONDS = 60.0  # without any worker, after which something is said
_POLL_SECONDS = 1.0

Task = TypeVar("Task", bound=Hashable)


class Pool(Generic[Task]):
    """Hands tasks to actors as they become free.

    A worker that dies gives its tasks back and is replaced; they go to whoever is free, so that a
    lost node costs its unfinished tasks only. A task that loses its worker five times is taken for
    the cause. An exception, be it of a task or of an actor's ``__init__``, ends the work at once.

    Args:
        start: Starts an actor with methods ``ready()``, ``progress()`` (units done of unfinished
            tasks) and whatever ``submit`` calls; it must take several calls at once.
        submit: Gives a task to an actor; returns Ray's reference of the result.
        workers: How many actors there should be; asked again and again, so that nodes which join
            later get work.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        submit: Callable[[Any, Task], Any],
        workers: Callable[[], int],
    ) -> None:
        self._start, self._submit = start, submit
        self._queue: deque[Task] = deque()
        self._losses: Counter[Task] = Counter()
        self._stillborn = 0
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Task, Any]] = {}
        self._ready: list[Any] = []
        self._workers = workers

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any] | int]:
        """Do all tasks.

        Yields:
            Each finished task with its result, in any order; in between, about once a second, the
            units done so far of tasks that are under way.

        Raises:
            StageError: An actor could not be made, a task failed, or it lost its worker too often.
        """
        self._queue.extend(tasks)
        polled = time.monotonic()
        patience = polled + _PATIENCE_SECONDS
        try:
            # A task is in _queue or in _running until it is yielded, a worker in _starting or in
            # _ready until it is lost. A turn of the loop moves what one event speaks of, and hands
            # out only then, so that a lost worker's tasks are found, and found once.
            self._grow()
            while self._queue or self._running:
                waiting = [*self._starting, *self._running]
                ready, _ = ray.wait(waiting, num_returns=1, timeout=_POLL_SECONDS)
                if time.monotonic() - polled > _POLL_SECONDS:
                    polled = time.monotonic()
                    self._grow()
                    yield self._progress()
                if not ready:
                    if not self._ready and time.monotonic() > patience:
                        patience = math.inf
                        log.warning(
                            "no worker has started yet: waiting for the cluster to have room, or "
                            "for the backbone to load (`ray status` shows what is asked for)"
                        )
                    continue
                reference = ready[0]
                is_new = reference in self._starting
                worker = self._starting[reference] if is_new else self._running[reference][1]
                try:
                    result = ray.get(reference)
                except RayError as error:
                    is_lost = isinstance(error, RayActorError) and not error.actor_init_failed
                    if not is_lost:  # an exception, which another worker would raise too
                        raise StageError(told(cause(error))) from None
                    self._lose(worker, told(error))
                else:
                    if is_new:
                        self._ready.append(self._starting.pop(reference))
                    else:
                        yield self._running.pop(reference)[0], result
                self._hand_out()
        finally:
            for actor in (*self._ready, *self._starting.values()):
                ray.kill(actor)

    def _grow(self) -> None:
        """Start actors up to the number wanted, but no more than there are tasks for."""
        wanted = min(self._workers(), len(self._queue) + len(self._running))
        for _ in range(wanted - len(self._ready) - len(self._starting)):
            actor = self._start()
            self._starting[actor.ready.remote()] = actor

    def _hand_out(self) -> None:
        """Give waiting tasks to workers, to each one more before any gets its second."""
        for in_flight in range(_IN_FLIGHT):
            for worker in self._ready:
                held = sum(one is worker for _, one in self._running.values())
                if self._queue and held <= in_flight:
                    task = self._queue.popleft()
                    self._running[self._submit(worker, task)] = (task, worker)

    def _lose(self, worker: Any, why: str) -> None:
        ray.kill(worker)  # it may be out of reach only
        self._ready = [one for one in self._ready if one is not worker]
        self._starting = {ref: one for ref, one in self._starting.items() if one is not worker}
        # noted before they leave the table; they go to the front of the queue, in their old order
        lost = [task for task, one in self._running.values() if one is worker]
        self._running = {r: pair for r, pair in self._running.items() if pair[1] is not worker}
        self._queue.extendleft(reversed(lost))
        self._losses.update(lost)
        self._stillborn = 0 if lost else self._stillborn + 1
        if self._stillborn >= _ATTEMPTS * max(1, self._workers()):
            raise StageError(f"workers die before they have begun: {why}")
        for task in lost:
            if self._losses[task] >= _ATTEMPTS:
                raise StageError(f"{task} lost its worker {_ATTEMPTS} times: {why}")
        log.warning("a worker was lost, its tasks go to others: %s", why)
        self._grow()

    def _progress(self) -> int:
        busy = {id(worker): worker for _, worker in self._running.values()}
        if not busy:
            return 0
        asked = [worker.progress.remote() for worker in busy.values()]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_POLL_SECONDS)
        done = 0
        for reference in answered:
            try:
                done += ray.get(reference)
            except RayError:
                continue  # its loss is seen to where its tasks are waited for
        return done

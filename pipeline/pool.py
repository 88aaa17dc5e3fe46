"""Actors that work through a list of tasks, whatever becomes of single workers and nodes."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from pipeline.errors import StageError

log = logging.getLogger(__name__)

_ATTEMPTS = 5  # losses of a worker that one task may outlive
_IN_FLIGHT = 2  # tasks a worker holds: one in the network, one on its way in or out
_POLL_SECONDS = 1.0

Task = TypeVar("Task", bound=Hashable)


class Pool(Generic[Task]):
    """Hands tasks to actors as they become free.

    A worker that dies gives its tasks back and is replaced; they go to whoever is free, so that a
    lost node costs its unfinished tasks only. A task that loses its worker five times is taken for
    the cause.

    Args:
        start: Starts an actor with methods ``ready()``, ``progress()`` (units done of unfinished
            tasks) and whatever ``submit`` calls; it must take several calls at once.
        submit: Gives a task to an actor; returns Ray's reference of the result.
        workers: Number of actors.
    """

    def __init__(
        self, start: Callable[[], Any], submit: Callable[[Any, Task], Any], workers: int
    ) -> None:
        self._start, self._submit = start, submit
        self._queue: deque[Task] = deque()
        self._losses: Counter[Task] = Counter()
        self._stillborn = 0
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Task, Any]] = {}
        self._actors: list[Any] = []
        self._workers = workers

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Any] | int]:
        """Do all tasks.

        Yields:
            Each finished task with its result, in any order; in between, about once a second, the
            units done so far of tasks that are under way.

        Raises:
            StageError: A task failed, or lost its worker too often.
        """
        import ray
        from ray.exceptions import RayActorError, RayError

        from pipeline.cluster import cause

        self._queue.extend(tasks)
        try:
            for _ in range(self._workers):
                self._add()
            while self._queue or self._running:
                waiting = [*self._starting, *self._running]
                ready, _ = ray.wait(waiting, num_returns=1, timeout=_POLL_SECONDS)
                if not ready:
                    yield self._progress()
                    continue
                reference = ready[0]
                task, worker = self._running.get(reference) or (
                    None,
                    self._starting.get(reference),
                )
                try:
                    result = ray.get(reference)
                except RayActorError as error:
                    self._lose(worker, " ".join(str(error).split()))
                    continue
                except RayError as error:
                    raise StageError(" ".join(str(cause(error)).split())) from None
                self._running.pop(reference, None)
                if self._starting.pop(reference, None) is not None:
                    self._give(worker)
                else:
                    assert task is not None
                    yield task, result
                self._give(worker)
        finally:
            for actor in self._actors:
                ray.kill(actor)

    def _add(self) -> None:
        actor = self._start()
        self._actors.append(actor)
        self._starting[actor.ready.remote()] = actor

    def _give(self, worker: Any) -> None:
        if self._queue:
            task = self._queue.popleft()
            self._running[self._submit(worker, task)] = (task, worker)

    def _lose(self, worker: Any, why: str) -> None:
        if worker not in self._actors:
            return
        self._actors.remove(worker)
        self._starting = {ref: one for ref, one in self._starting.items() if one is not worker}
        lost = [task for task, one in self._running.values() if one is worker]
        self._running = {r: pair for r, pair in self._running.items() if pair[1] is not worker}
        self._queue.extendleft(reversed(lost))
        self._losses.update(lost)
        self._stillborn = 0 if lost else self._stillborn + 1
        if self._stillborn >= _ATTEMPTS * self._workers:
            raise StageError(f"workers die before they have begun: {why}")
        for task in lost:
            if self._losses[task] >= _ATTEMPTS:
                raise StageError(f"{task} lost its worker {_ATTEMPTS} times: {why}")
        log.warning("a worker was lost (%s); its tasks go to others", why)
        self._add()

    def _progress(self) -> int:
        import ray

        busy = {id(worker): worker for _, worker in self._running.values()}
        asked = [worker.progress.remote() for worker in busy.values()]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=_POLL_SECONDS)
        done = 0
        for reference in answered:
            try:
                done += ray.get(reference)
            except ray.exceptions.RayError:
                continue  # its loss is seen to where its tasks are waited for
        return done

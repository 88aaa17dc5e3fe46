"""A pool of actors on a real Ray, and what becomes of workers that fail."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster import session as cluster
from pipeline.cluster.pool import Pool
from pipeline.settings.config import Config
from pipeline.terminal.errors import StageError, UsageError

from ..conftest import WITH_RAY

pytestmark = WITH_RAY


class Doubler:
    def ready(self) -> None: ...

    def progress(self) -> int:
        return 0

    def double(self, number: int) -> int:
        return 2 * number


class Broken(Doubler):
    def __init__(self) -> None:
        raise UsageError("no weights\nof that name")


class Fragile(Doubler):
    """Dies at its first task, unless one has died before."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def double(self, number: int) -> int:
        if not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return super().double(number)


def pool_of(kind: type, *arguments: Any) -> tuple[Pool[int], list[Any]]:
    """A pool of two actors, and the list of those it has started."""
    import ray

    actor = ray.remote(max_concurrency=3)(kind)
    started: list[Any] = []

    def start() -> Any:
        started.append(actor.remote(*arguments))
        return started[-1]

    return Pool(start, lambda worker, task: worker.double.remote(task), lambda: 2), started


def test_an_actor_that_cannot_be_made_ends_the_work_with_its_own_message(ray_session: None) -> None:
    pool, started = pool_of(Broken)
    with pytest.raises(StageError, match=r"^no weights of that name$"):
        list(pool.run([1, 2, 3]))
    assert len(started) == 2  # none was tried again


def test_tasks_of_a_lost_worker_are_done_by_others(ray_session: None, tmp_path: Path) -> None:
    pool, _ = pool_of(Fragile, tmp_path / "mark")
    events = pool.run([1, 2, 3])
    assert dict(event for event in events if isinstance(event, tuple)) == {1: 2, 2: 4, 3: 6}


def test_a_worker_on_a_gpu_has_a_share_of_the_cpus_of_its_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nodes(*resources: dict[str, float]) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": one} for one in resources]

    monkeypatch.setattr(cluster, "choose_device", lambda _: ("cuda", "2 GPUs"))
    monkeypatch.setattr("ray.nodes", lambda: nodes({"CPU": 2}, {"CPU": 8, "GPU": 2}))
    assert cluster.place_workers(Config(), None).options == {"num_cpus": 4, "num_gpus": 1}
    monkeypatch.setattr("ray.nodes", lambda: nodes({"CPU": 2}))
    with pytest.raises(StageError, match="no node of the cluster has a GPU"):
        cluster.place_workers(Config(), None)

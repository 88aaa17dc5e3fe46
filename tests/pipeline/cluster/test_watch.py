"""What is looked at beside other work."""

import threading

import pytest

from pipeline.cluster.watch import watched


def test_a_look_that_fails_is_told_once_and_looked_again(caplog: pytest.LogCaptureFixture) -> None:
    looks = 0
    enough = threading.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 4:
            enough.set()
        if looks in (1, 2):
            raise TimeoutError
        if looks == 3:
            raise OSError("disk is full")

    with watched(look, "counting", seconds=0.001):
        assert enough.wait(30)
    told = [record.message for record in caplog.records]
    assert [line.partition(";")[0] for line in told] == [
        "counting failed (TimeoutError)",
        "counting failed (disk is full)",
    ]


@pytest.mark.parametrize("at_end", [False, True])
def test_the_last_look_comes_after_the_block_also_where_that_fails(at_end: bool) -> None:
    looks: list[str] = []
    place = "within"

    def work() -> None:
        nonlocal place
        with watched(lambda: looks.append(place), "looking", seconds=60, at_end=at_end):
            place = "after"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert looks == (["after"] if at_end else [])

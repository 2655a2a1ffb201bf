"""The three stages at once."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import pytest

from comdefend_cli.batch.pipeline import Item, Pipeline


@dataclass
class Number(Item):
    """An item that is a number, of so many megapixels."""

    value: int
    megapixels: float = 1.0


class Recorder:
    """Stages that write down what was done to which numbers, and what was held at a time."""

    def __init__(self, *, bad: set[int] | None = None, limit: int = 4) -> None:
        self.bad, self.limit = bad or set(), limit
        self.batches: list[list[int]] = []
        self.written: list[int] = []
        self.held = self.most = 0.0
        self.lock = threading.Lock()

    def weigh(self, item: Number) -> float:
        return item.megapixels / 4

    def measure(self, item: Number) -> float:
        return item.megapixels

    def read(self, item: Number) -> None:
        with self.lock:
            self.held += item.megapixels
            self.most = max(self.most, self.held)

    def group(self, item: Number) -> tuple[Hashable, int]:
        return item.value % 2, self.limit

    def compute(self, items: list[Number]) -> None:
        self.batches.append([item.value for item in items])
        time.sleep(0.002)
        if any(item.value in self.bad for item in items):
            raise ValueError("bad number")

    def write(self, item: Number) -> None:
        with self.lock:
            self.written.append(item.value)

    def release(self, item: Number) -> None:
        with self.lock:
            self.held -= item.megapixels


def test_the_pipeline_does_each_item_once_in_batches_of_one_group() -> None:
    """A hundred items all come out once; batches hold one group, more than one item where there are more, and never over their limit."""
    stages = Recorder()
    values = [item.value for item in Pipeline(stages, map(Number, range(100)), readers=3, writers=3).results()]
    assert sorted(values) == sorted(stages.written) == list(range(100))
    assert all(len({value % 2 for value in batch}) == 1 and len(batch) <= 4 for batch in stages.batches)
    assert len(stages.batches) < 100


def test_an_item_holds_as_much_of_the_budget_as_it_takes() -> None:
    """What its file takes or its pixels, whichever is more, and a least; all of it is given back."""
    pipeline = Pipeline(Recorder(), [Number(0, 3.0), Number(1, 0.02), Number(2, 0.001)], readers=1, writers=1)
    assert {item.value: item.cost for item in pipeline.results()} == {0: 3.0, 1: 0.02, 2: 0.01}
    assert pipeline._budget._used == 0.0
    heavy = Recorder()
    heavy.weigh = lambda item: 5.0  # type: ignore[method-assign]
    assert [item.cost for item in Pipeline(heavy, [Number(0, 3.0)], readers=1, writers=1).results()] == [5.0]
    (failed,) = Pipeline(Broken("weigh", ValueError, at=1), [Number(0, 3.0)], readers=1, writers=1).results()
    assert failed.error and failed.cost == 0.0 and 0 < failed.seconds < 1


def test_a_bad_item_does_not_take_its_batch_along() -> None:
    """Where a batch fails, its items are tried alone, and only those that fail then have failed."""
    stages = Recorder(bad={6, 31})
    results = Pipeline(stages, map(Number, range(40)), readers=2, writers=2).results()
    failed = {item.value: str(item.error) for item in results if item.error}
    assert failed == {6: "bad number", 31: "bad number"}
    assert sorted(stages.written) == [value for value in range(40) if value not in failed]


def test_what_failed_is_let_go_of_at_once() -> None:
    """Nothing that a stage held when it failed stays until garbage is collected: a folder of damaged files took gigabytes so."""

    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    class Failing(Recorder):
        def read(self, item: Number) -> None:
            image = Held()
            held.append(weakref.ref(image))
            try:
                raise ValueError("damaged")
            except ValueError as error:
                if item.value == 0:
                    raise OSError("damaged image") from error
                if item.value == 1:
                    raise OSError("damaged image")  # noqa: B904  # The one before is kept all the same.
                cause = error
            raise OSError("damaged image") from cause

    gc.collect()
    gc.disable()
    try:
        results = list(Pipeline(Failing(), map(Number, range(5)), readers=1, writers=1).results())
        assert [str(item.error) for item in results] == ["damaged image"] * 5
        assert [reference() for reference in held] == [None] * 5
    finally:
        gc.enable()


def test_what_is_in_work_stays_within_the_budget() -> None:
    """Never more megapixels at a time than the budget, but for one item alone that is larger; that one is not passed over for ever."""
    stages = Recorder()
    items = [Number(value, 30.0 if value == 20 else 1.0) for value in range(60)]
    assert len(list(Pipeline(stages, items, readers=4, writers=4, budget=8.0).results())) == 60
    assert stages.most == 30.0
    stages = Recorder()
    assert len(list(Pipeline(stages, map(Number, range(60)), readers=4, writers=4, budget=8.0).results())) == 60
    assert stages.most <= 8.0


def test_a_stopped_pipeline_ends_with_what_was_computed_written() -> None:
    """After a stop the results end by themselves, and each written item was among them."""
    stages = Recorder(limit=1)
    pipeline = Pipeline(stages, map(Number, range(100_000)), readers=2, writers=2, budget=10.0)
    values = []
    for item in pipeline.results():
        values.append(item.value)
        pipeline.stop_asked = True
    assert 0 < len(values) < 1000
    assert sorted(values) == sorted(stages.written)


class Fatal(BaseException):
    """What is no failure of an item."""


class Broken(Recorder):
    """Stages of which one goes wrong at the fifth item that it sees, or another."""

    def __init__(self, stage: str, error: type[BaseException], at: int = 5) -> None:
        super().__init__()
        self.stage, self.error, self.at, self.seen = stage, error, at, 0

    def __getattribute__(self, name: str) -> Any:
        if name != super().__getattribute__("__dict__").get("stage"):
            return super().__getattribute__(name)
        self.seen += 1
        if self.seen == self.at:
            raise self.error("mistake")
        return super().__getattribute__(name)


class Unhashable(Recorder):
    """Stages whose groups cannot be told apart, which shows only in the computing thread."""

    def group(self, item: Number) -> tuple[Hashable, int]:
        return [item.value], 1  # type: ignore[return-value]


def broken_items() -> Iterator[Number]:
    """Items that end by a mistake."""
    yield from map(Number, range(5))
    raise RuntimeError("mistake")


def run_to_its_end(pipeline: Pipeline[Number], consume: Callable[[Number], object] = lambda item: None) -> BaseException | None:
    """What a run raised; fails if it, or any of its threads, still goes on after some seconds."""
    before = set(threading.enumerate())
    raised: list[BaseException | None] = []

    def go() -> None:
        try:
            for item in pipeline.results():
                consume(item)
            raised.append(None)
        except BaseException as error:
            raised.append(error)

    caller = threading.Thread(target=go, daemon=True)
    caller.start()
    caller.join(10)
    until = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not left, left
    return raised[0]


@pytest.mark.parametrize("stage", ["weigh", "measure", "read", "group", "compute", "write", "release"])
def test_a_mistake_in_any_stage_ends_the_run(stage: str) -> None:
    """What is no failure of an item comes out of the results, and no thread is left waiting."""
    error = run_to_its_end(Pipeline(Broken(stage, Fatal), map(Number, range(100)), readers=3, writers=3, budget=8.0))
    assert isinstance(error, Fatal)


@pytest.mark.parametrize("stage", ["weigh", "measure", "read", "group", "compute", "write"])
def test_an_exception_in_any_stage_fails_its_item_alone(stage: str) -> None:
    """All others are done, and no thread is left waiting."""
    seen: list[Number] = []
    stages = Broken(stage, ValueError)
    assert run_to_its_end(Pipeline(stages, map(Number, range(100)), readers=3, writers=3, budget=8.0), seen.append) is None
    assert len(seen) == 100
    assert len(stages.written) + sum(item.error is not None for item in seen) == 100
    assert sum(item.error is not None for item in seen) <= 1  # In compute, where a batch is tried again, each item alone, only one of one.


def test_a_mistake_outside_the_stages_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the items, in what sorts them into batches, in a failed item's release, in a thread that cannot be started: likewise."""
    assert str(run_to_its_end(Pipeline(Recorder(), broken_items(), readers=3, writers=3))) == "mistake"
    assert isinstance(run_to_its_end(Pipeline(Unhashable(), map(Number, range(10)), readers=3, writers=3)), TypeError)
    assert str(run_to_its_end(Pipeline(Broken("release", RuntimeError), map(Number, range(10)), readers=3, writers=3))) == "mistake"
    start, started = threading.Thread.start, []

    def fail_at_the_fourth(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 4:  # The first is the test's own.
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail_at_the_fourth)
    assert "new thread" in str(run_to_its_end(Pipeline(Recorder(), map(Number, range(10)), readers=3, writers=3)))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Fatal])
def test_a_mistake_of_who_takes_the_results_ends_the_run(error: type[BaseException]) -> None:
    """Whatever is raised where the results are used, the threads end, also where a budget is waited for."""

    def consume(item: Number) -> None:
        raise error

    assert isinstance(run_to_its_end(Pipeline(Recorder(), map(Number, range(10_000)), readers=3, writers=3, budget=2.0), consume), error)


def test_results_that_nobody_takes_any_more_can_be_ended() -> None:
    """Who holds on to the results and leaves them half-way ends the threads by closing the pipeline."""
    before = set(threading.enumerate())
    pipeline = Pipeline(Recorder(), map(Number, range(10_000)), readers=3, writers=3, budget=2.0)
    results = pipeline.results()
    next(results)
    pipeline.close()
    assert set(threading.enumerate()) <= before


def test_no_thread_is_left_when_the_results_are() -> None:
    """Who stops taking them waits for what is being written."""

    class Slow(Recorder):
        def write(self, item: Number) -> None:
            time.sleep(0.05)
            super().write(item)

    pipeline = Pipeline(Slow(), map(Number, range(12)), readers=2, writers=3)
    results = pipeline.results()
    next(results)
    results.close()
    assert pipeline._threads and not any(thread.is_alive() for thread in pipeline._threads)


@pytest.mark.timeout(60)
def test_who_insists_does_not_wait_for_the_networks() -> None:
    """Ctrl-C where the results are waited for comes out at once, while a batch is still computed."""
    computing, go_on = threading.Event(), threading.Event()

    class Slow(Recorder):
        def compute(self, items: list[Number]) -> None:
            computing.set()
            go_on.wait(30)

    class Interrupted(SimpleQueue[Any]):
        def get(self, *arguments: object, **more: object) -> Any:
            computing.wait(30)
            raise KeyboardInterrupt

    pipeline = Pipeline(Slow(), map(Number, range(10)), readers=1, writers=1)
    pipeline._results = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        list(pipeline.results())
    assert any(thread.is_alive() for thread in pipeline._threads)
    go_on.set()
    pipeline.close()
    assert not any(thread.is_alive() for thread in pipeline._threads)

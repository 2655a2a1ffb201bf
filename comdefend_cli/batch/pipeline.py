"""Three stages at once over many items: readers, one computing thread, writers.

    items -> reader threads -> by group, in batches -> the computing thread -> writer threads -> results

What is between being read and being written is bounded by a budget of megapixels, not by a number of
items: thousands of thumbnails, or one large image at a time. An item that fails leaves the others alone; any other error, in
whichever thread, ends the run: all threads end, and it is raised where the results are taken.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from comdefend_cli.batch.budget import BUDGET, LEAST_COST, Budget, Stopped

#: Seconds after which a request to stop is seen at the latest.
_LOOK = 0.1


@dataclass
class Item:
    """One thing on its way.

    Attributes:
        cost: megapixels it holds of the budget.
        seconds: that were worked on it, without waiting; of a batch, its share.
        error: why it failed, or None.
    """

    cost: float = field(default=0.0, init=False)
    seconds: float = field(default=0.0, init=False)
    error: Exception | None = field(default=None, init=False)


ItemT = TypeVar("ItemT", bound=Item)


class Stages(Protocol[ItemT]):
    """What is done to items. Any exception of these but of `release` fails the item, or each of a batch that fails alone too.

    An exception that is no :class:`Exception`, and one of `release`, ends the run.
    """

    def weigh(self, item: ItemT) -> float:
        """Megapixels that its file takes in memory as it is, without reading any of it. Called from reader threads."""

    def measure(self, item: ItemT) -> float:
        """Megapixels it will take; the file may be held in memory from now on. Called from reader threads."""

    def read(self, item: ItemT) -> None:
        """Read it. Called from reader threads."""

    def group(self, item: ItemT) -> tuple[Hashable, int]:
        """What items of one batch have in common, and how many of these a batch may have. Called from reader threads."""

    def compute(self, items: list[ItemT]) -> None:
        """Compute a batch. Called from one thread only."""

    def write(self, item: ItemT) -> None:
        """Write it. Called from writer threads."""

    def release(self, item: ItemT) -> None:
        """Let go of what takes memory. Called once an item is done or failed."""


_END: Any = object()


class Pipeline(Generic[ItemT]):
    """Runs items through the stages; iterate over :meth:`results` once.

    Args:
        stages: what to do.
        items: taken one by one, as there is room.
        readers, writers: threads of each.
        budget: megapixels in work at a time.

    Attributes:
        stop_asked: set it (also from a signal handler) to end soon: nothing new is read or computed, a batch in
            work is given up where its stage looks at `stopping`, and what was computed is still written.
    """

    def __init__(self, stages: Stages[ItemT], items: Iterable[ItemT], *, readers: int, writers: int, budget: float = BUDGET) -> None:
        self.stop_asked = False
        self._stages = stages
        self._items = iter(items)
        self._readers, self._writers = readers, writers
        self._budget = Budget(budget)
        self._taking = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._read: SimpleQueue[tuple[ItemT, Hashable, int]] = SimpleQueue()
        self._computed: SimpleQueue[ItemT] = SimpleQueue()
        self._results: SimpleQueue[ItemT | BaseException] = SimpleQueue()

    @property
    def stopping(self) -> bool:
        """Whether work is to be given up."""
        return self.stop_asked or self._stopping.is_set()

    def results(self) -> Generator[ItemT]:
        """Each item that came to its end, done or failed, in that order; those that a stop left are not among them.

        Raises:
            BaseException: whatever ended a thread, when all threads have ended.
        """
        wait = True
        try:
            for target in [self._run_reader] * self._readers + [self._run_computer] + [self._run_writer] * self._writers:
                # Daemons, so that a person who insists can leave at once.
                thread = threading.Thread(target=self._guard, args=(target,), daemon=True)
                thread.start()
                self._threads.append(thread)
            yield from self._follow()
        except KeyboardInterrupt:
            wait = False
            raise
        finally:
            self.close(wait=wait)

    def close(self, *, wait: bool = True) -> None:
        """Let all threads end, and wait until they have; needed only where :meth:`results` was not gone through to its end."""
        self._stop()
        for thread in self._threads if wait else ():
            thread.join()

    def _follow(self) -> Iterator[ItemT]:
        running = self._writers
        while running:
            if self.stop_asked:
                self._stop()
            try:
                item = self._results.get(timeout=_LOOK)
            except Empty:
                continue
            if item is _END:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item

    def _stop(self) -> None:
        self._stopping.set()
        self._budget.close()

    def _guard(self, target: Callable[[], None]) -> None:
        """A thread that ended by a mistake ends the whole, instead of letting it wait for ever."""
        try:
            target()
        except BaseException as error:
            self._stop()
            self._results.put(error)

    def _take_next(self) -> ItemT | None:
        with self._taking:
            return None if self.stopping else next(self._items, None)

    def _run_reader(self) -> None:
        while (item := self._take_next()) is not None:
            try:
                entry = self._take_in(item)
            except Stopped:
                break
            except Exception as error:
                self._finish(item, error)
            else:
                self._read.put(entry)
        self._read.put(_END)

    def _take_in(self, item: ItemT) -> tuple[ItemT, Hashable, int]:
        """Read an item when there is room for it: first for its file, then for its pixels."""
        with _measure_time([item]):
            size = max(self._stages.weigh(item), LEAST_COST)
        self._budget.acquire(size)
        item.cost = size
        with _measure_time([item]):
            more = self._stages.measure(item) - size
        if more > 0:
            self._budget.grow(size, more)
            item.cost += more
        with _measure_time([item]):
            self._stages.read(item)
        return item, *self._stages.group(item)

    def _run_computer(self) -> None:
        try:
            self._compute_groups()
        finally:
            for _ in range(self._writers):
                self._computed.put(_END)

    def _compute_groups(self) -> None:
        """Take what has been read, and of it the oldest group, as large a batch as there is: the network never waits to fill one."""
        groups: dict[Hashable, deque[tuple[ItemT, int]]] = {}
        readers = self._readers
        while readers or groups:
            readers -= self._sort_in(groups, wait=not groups)
            if self.stopping:
                return
            if groups:
                key = next(iter(groups))
                queue = groups.pop(key)
                limit = min(queue[0][1], len(queue))
                self._compute([queue.popleft()[0] for _ in range(limit)])
                if queue:
                    groups[key] = queue

    def _sort_in(self, groups: dict[Hashable, deque[tuple[ItemT, int]]], *, wait: bool) -> int:
        """Move what has been read into its groups; the number of readers that ended."""
        ended = 0
        while not self.stopping:
            try:
                entry = self._read.get(timeout=_LOOK) if wait else self._read.get_nowait()
            except Empty:
                if wait:
                    continue
                break
            wait = False
            if entry is _END:
                ended += 1
            else:
                item, key, limit = entry
                groups.setdefault(key, deque()).append((item, limit))
        return ended

    def _compute(self, batch: list[ItemT]) -> None:
        try:
            with _measure_time(batch):
                self._stages.compute(batch)
        except Stopped:
            return
        except Exception as error:
            if len(batch) == 1:
                self._finish(batch[0], error)
                return
            for item in batch:
                self._compute([item])
            return
        for item in batch:
            self._computed.put(item)

    def _run_writer(self) -> None:
        while (item := self._computed.get()) is not _END:
            try:
                with _measure_time([item]):
                    self._stages.write(item)
            except Exception as error:
                self._finish(item, error)
            else:
                self._finish(item, None)
        self._results.put(_END)

    def _finish(self, item: ItemT, error: Exception | None) -> None:
        item.error = error
        chained: BaseException | None = error
        while chained is not None:  # Frames hold what was in work, and the item: together they would stay until garbage is collected.
            chained.__traceback__ = None
            chained = chained.__cause__ or chained.__context__
        self._stages.release(item)
        if item.cost:
            self._budget.give_back(item.cost)
        self._results.put(item)


@contextmanager
def _measure_time(items: list[ItemT]) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        share = (time.perf_counter() - began) / len(items)
        for item in items:
            item.seconds += share

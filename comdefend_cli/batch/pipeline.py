"""Three stages at once over many items: readers, one computing thread, writers.

    items -> reader threads -> by group, in batches -> the computing thread -> writer threads -> results

What is between being read and being written is bounded by a budget of megapixels, not by a number of
items: thousands of thumbnails, or one large image at a time. An item that fails leaves the others alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from comdefend_cli.runtime import machine

#: Megapixels in work at a time unless told otherwise; about 20 bytes a pixel, so 1.3 GB.
BUDGET = 64.0
#: Bytes that a pixel in work takes, decoded, purified and encoded; and the share of the memory that all in work may take.
_BYTES_A_PIXEL = 20
_SHARE = 0.25
#: What an item costs at least, which bounds their number too.
_LEAST_COST = 0.01
#: Seconds after which a request to stop is seen at the latest.
_LOOK = 0.1


def budget(share: float = 1.0, most: float = BUDGET) -> float:
    """Megapixels in work at a time: `most`, or less where this process may use little memory, of which it has that share."""
    limit = machine.memory()
    return min(BUDGET, most) if limit is None else min(most, share * limit * _SHARE / _BYTES_A_PIXEL / 1e6)


class Stopped(Exception):  # noqa: N818  # Not an error.
    """Raised in a stage that is to give up what it does."""


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
    """What is done to items. Any exception of these fails the item, or each of a batch that fails alone too."""

    def measure(self, item: ItemT) -> float:
        """Megapixels it will take; quick, without reading it whole. Called from reader threads."""

    def read(self, item: ItemT) -> None:
        """Read it. Called from reader threads."""

    def group(self, item: ItemT) -> tuple[Hashable, int]:
        """What items of one batch have in common, and how many of these a batch may have."""

    def compute(self, items: list[ItemT]) -> None:
        """Compute a batch. Called from one thread only."""

    def write(self, item: ItemT) -> None:
        """Write it. Called from writer threads."""

    def release(self, item: ItemT) -> None:
        """Let go of what takes memory. Called once an item is done or failed."""


class Budget:
    """A number of megapixels that threads share. One item over the limit is let in when it is alone."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._used = 0.0
        self._closed = False
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def acquire(self, amount: float) -> None:
        """Wait for room and take it. First come, first served: a large item is not passed for ever by small ones.

        Raises:
            Stopped: the budget was closed.
        """
        with self._turn, self._changed:
            while self._used > 0 and self._used + amount > self.limit and not self._closed:
                self._changed.wait()
            if self._closed:
                raise Stopped
            self._used += amount

    def give_back(self, amount: float) -> None:
        """Give room back."""
        with self._changed:
            # Rounding must not leave a crumb that a waiting large item would wait for.
            self._used = 0.0 if self._used - amount < _LEAST_COST / 2 else self._used - amount
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing in any more, and wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
        self._read: SimpleQueue[ItemT] = SimpleQueue()
        self._computed: SimpleQueue[ItemT] = SimpleQueue()
        self._results: SimpleQueue[ItemT | BaseException] = SimpleQueue()

    @property
    def stopping(self) -> bool:
        """Whether work is to be given up."""
        return self.stop_asked or self._stopping.is_set()

    def results(self) -> Iterator[ItemT]:
        """Each item that came to its end, done or failed, in that order; those that a stop left are not among them."""
        targets = [self._reader] * self._readers + [self._computer] + [self._writer] * self._writers
        # Daemons, so that a person who insists can leave at once.
        threads = [threading.Thread(target=self._guard, args=(target,), daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        try:
            yield from self._until_end()
        except KeyboardInterrupt:
            self._stop()
            raise
        except BaseException:
            self._stop()
            for thread in threads:
                thread.join()
            raise
        for thread in threads:
            thread.join()

    def _until_end(self) -> Iterator[ItemT]:
        running = self._writers
        while running:
            if self.stop_asked and not self._stopping.is_set():
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
        """A thread that ended by a mistake of ours ends the whole, instead of letting it wait for ever."""
        try:
            target()
        except BaseException as error:
            self._results.put(error)

    def _next(self) -> ItemT | None:
        with self._taking:
            return None if self.stopping else next(self._items, None)

    def _reader(self) -> None:
        while (item := self._next()) is not None:
            try:
                with _timed([item]):
                    cost = max(self._stages.measure(item), _LEAST_COST)
                self._budget.acquire(cost)
                item.cost = cost
                with _timed([item]):
                    self._stages.read(item)
            except Stopped:
                break
            except Exception as error:
                self._finish(item, error)
            else:
                self._read.put(item)
        self._read.put(_END)

    def _computer(self) -> None:
        """Take what has been read, and of it the oldest group, as large a batch as there is: the network never waits to fill one."""
        groups: dict[Hashable, deque[ItemT]] = {}
        readers = self._readers
        while readers or groups:
            readers -= self._sort_in(groups, wait=not groups)
            if self.stopping:
                break
            if groups:
                key = next(iter(groups))
                queue = groups.pop(key)
                limit = self._stages.group(queue[0])[1]
                self._compute([queue.popleft() for _ in range(min(limit, len(queue)))])
                if queue:
                    groups[key] = queue
        for _ in range(self._writers):
            self._computed.put(_END)

    def _sort_in(self, groups: dict[Hashable, deque[ItemT]], *, wait: bool) -> int:
        """Move what has been read into its groups; the number of readers that ended."""
        ended = 0
        while not self.stopping:
            try:
                item = self._read.get(timeout=_LOOK) if wait else self._read.get_nowait()
            except Empty:
                if wait:
                    continue
                break
            wait = False
            if item is _END:
                ended += 1
            else:
                groups.setdefault(self._stages.group(item)[0], deque()).append(item)
        return ended

    def _compute(self, batch: list[ItemT]) -> None:
        try:
            with _timed(batch):
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

    def _writer(self) -> None:
        while (item := self._computed.get()) is not _END:
            try:
                with _timed([item]):
                    self._stages.write(item)
            except Exception as error:
                self._finish(item, error)
            else:
                self._finish(item, None)
        self._results.put(_END)

    def _finish(self, item: ItemT, error: Exception | None) -> None:
        item.error = error
        self._stages.release(item)
        if item.cost:
            self._budget.give_back(item.cost)
        self._results.put(item)


@contextmanager
def _timed(items: list[ItemT]) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        share = (time.perf_counter() - began) / len(items)
        for item in items:
            item.seconds += share

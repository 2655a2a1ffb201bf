"""Megapixels that may be in work at a time, which the threads of a run share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from comdefend_cli.runtime.machine import find_memory_limit

#: Megapixels in work at a time unless told otherwise; about 20 bytes a pixel, so 1.3 GB.
BUDGET = 64.0
#: What an item costs at least, which bounds their number too.
LEAST_COST = 0.01
#: Bytes that a pixel in work takes, decoded, purified and encoded; and the share of the memory that all in work may take.
_BYTES_A_PIXEL = 20
_SHARE = 0.25
#: Less than this is what rounding left, which nobody holds.
_CRUMB = LEAST_COST / 2


def fit_budget(share: float = 1.0, most: float = BUDGET) -> float:
    """Megapixels in work at a time: `most`, or less where this process may use little memory, of which it has that share."""
    limit = find_memory_limit()
    return min(BUDGET, most) if limit is None else min(most, share * limit * _SHARE / _BYTES_A_PIXEL / 1e6)


class Stopped(Exception):  # noqa: N818  # Not an error.
    """Raised in a stage that is to give up what it does."""


class Budget:
    """A number of megapixels that threads share. One item over the limit is let in when it is alone."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._used = 0.0
        self._growing: list[float] = []  # What those hold that wait for more.
        self._closed = False
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    def acquire(self, amount: float) -> None:
        """Wait for room and take it. First come, first served: a large item is not passed for ever by small ones.

        Raises:
            Stopped: the budget was closed.
        """
        with self._turn, self._changed:
            self._take(amount, lambda: not self._growing and (self._used <= 0 or self._used + amount <= self.limit))

    def grow(self, held: float, amount: float) -> None:
        """Wait for room for more beside what one holds already, and take it; before any who hold nothing yet.

        Where all who hold something wait for more, one of them gets it over the limit: none of them could give anything back.

        Raises:
            Stopped: the budget was closed; what was held still is.
        """
        with self._changed:
            self._growing.append(held)
            self._changed.notify_all()  # This one may be the last that another waited for.
            try:
                self._take(amount, lambda: self._used + amount <= self.limit or self._used - sum(self._growing) < _CRUMB)
            finally:
                self._growing.remove(held)
                self._changed.notify_all()

    def give_back(self, amount: float) -> None:
        """Give room back."""
        with self._changed:
            # Rounding must not leave a crumb that a waiting large item would wait for.
            self._used = 0.0 if self._used - amount < _CRUMB else self._used - amount
            self._changed.notify_all()

    def close(self) -> None:
        """Let nothing in any more, and wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, amount: float, there_is_room: Callable[[], bool]) -> None:
        self._changed.wait_for(lambda: self._closed or there_is_room())
        if self._closed:
            raise Stopped
        self._used += amount

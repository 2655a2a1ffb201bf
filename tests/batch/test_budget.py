"""Room for images in work, which threads share."""

from __future__ import annotations

import threading
import time

import pytest

from comdefend_cli.batch import budget as budgets
from comdefend_cli.batch.budget import Budget, Stopped, fit_budget


def test_a_closed_budget_lets_nobody_wait() -> None:
    """Who waits for room is woken by its closing, and told to stop."""
    budget = Budget(1.0)
    budget.acquire(5.0)
    threading.Timer(0.05, budget.close).start()
    with pytest.raises(Stopped):
        budget.acquire(0.5)


def test_who_waits_for_more_is_let_in_before_others_and_never_for_ever() -> None:
    """Two that hold most of a budget and both need more get it one after the other, before one that holds nothing."""
    budget, order = Budget(10.0), []
    budget.acquire(4.0)
    budget.acquire(5.0)

    def grow(held: float, amount: float) -> None:
        budget.grow(held, amount)
        order.append(held)
        time.sleep(0.05)
        budget.give_back(held + amount)

    threads = [threading.Thread(target=grow, args=pair, daemon=True) for pair in ((4.0, 30.0), (5.0, 2.0))]
    threads[0].start()
    time.sleep(0.05)
    assert not order  # The other still works with what it holds.
    late = threading.Thread(target=lambda: (budget.acquire(0.5), order.append(0.5)), daemon=True)
    late.start()
    time.sleep(0.05)
    assert not order  # There would be room, but not for who came before.
    threads[1].start()
    for thread in (*threads, late):
        thread.join(10)
    assert sorted(order[:2]) == [4.0, 5.0] and order[2:] == [0.5]


@pytest.mark.timeout(20)
def test_room_is_given_up_to_the_limit() -> None:
    """To the last bit of it, beside what others hold."""
    budget = Budget(10.0)
    budget.acquire(2.0)
    budget.acquire(2.0)
    budget.grow(2.0, 6.0)
    budget.give_back(8.0)
    budget.give_back(2.0)
    budget.acquire(10.0)


def test_room_goes_by_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of what the process may use, of that its share, at 20 bytes a pixel, up to the most; without a limit the usual."""
    monkeypatch.setattr(budgets, "find_memory_limit", lambda: None)
    assert (fit_budget(), fit_budget(0.5, 1000.0), fit_budget(1.0, 10.0)) == (64.0, 64.0, 10.0)
    monkeypatch.setattr(budgets, "find_memory_limit", lambda: 2_000_000_000)
    assert (fit_budget(), fit_budget(0.5), fit_budget(1.0, 10.0)) == (25.0, 12.5, 10.0)
    monkeypatch.setattr(budgets, "find_memory_limit", lambda: 10**12)
    assert (fit_budget(), fit_budget(1.0, 100.0)) == (64.0, 100.0)

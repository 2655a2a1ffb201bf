"""Epsilons as they are written on the command line."""

from __future__ import annotations

import pytest

from comdefend_cli.cli.epsilons import parse_epsilons
from comdefend_cli.errors import UsageError
from comdefend_cli.evaluate.protocol import Protocol


def test_both_ways_to_write_an_epsilon_are_the_same() -> None:
    """Levels alone, and levels over 255, in any order, each once."""
    assert parse_epsilons("--epsilons", "8/255, 2,8, 16 / 255") == (2.0, 8.0, 16.0)
    assert parse_epsilons("--epsilons", "0.5/255") == (0.5,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0.03", r"did you mean 7.65 \(0.03 x 255\)"),
        ("8,0.0314", r"did you mean 8 \(0.0314 x 255\)"),
        ("eight", "takes numbers"),
        ("8/256", "takes numbers"),
        ("-8", "takes numbers"),
        ("nan", "takes numbers"),
        ("", "takes numbers"),
    ],
)
def test_what_is_no_epsilon_is_refused(text: str, words: str) -> None:
    """A share of 1 is taken for what it is; other texts say how epsilons are written."""
    with pytest.raises(UsageError, match=words):
        parse_epsilons("--epsilons", text)


def test_an_epsilon_that_rounding_undoes_is_refused() -> None:
    """Less than one level is none, unless adversarial images stay floats."""
    with pytest.raises(UsageError, match="rounding undoes the attack"):
        Protocol(epsilons=(0.5, 8.0))
    assert Protocol(epsilons=(0.5,), float_pixels=True).epsilons == (0.5,)

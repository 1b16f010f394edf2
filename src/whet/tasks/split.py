"""Which problems are train and which are test: a problem's own text decides, whatever the seed."""

import hashlib
from collections.abc import Callable
from typing import Literal

from whet.errors import DataError

Split = Literal["train", "test"]
# draws in a row without a new problem before a pool counts as exhausted; more where it is large
PATIENCE = 20_000


def is_test(text: str, share: float = 0.1) -> bool:
    """Whether a problem belongs to the test split: the same in every process and for every seed.

    >>> [is_test("3+5"), is_test("3+5", share=1.0)]
    [False, True]
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64


def demand(n: int, have: int, what: str, cure: str) -> None:
    """Raises DataError where fewer than `n` problems exist. `what`: "task chain: train problems"."""
    if n > have:
        raise DataError(f"{what}: {n} asked for, but there are only {have}; {cure}")


def distinct(draw: Callable[[], str | None], n: int, what: str, cure: str) -> list[str]:
    """n different texts from repeated draws, in order; a draw may fail (None).

    Raises DataError where draws stop bringing new texts: the pool is exhausted.
    """
    seen: dict[str, None] = {}
    misses = 0
    while len(seen) < n:
        text = draw()
        if text is None or text in seen:
            misses += 1
            if misses > PATIENCE + 20 * len(seen):
                raise DataError(f"{what}: {n} asked for, but only {len(seen)} were found; {cure}")
        else:
            seen[text] = None
            misses = 0
    return list(seen)

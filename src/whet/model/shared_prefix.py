"""Beginnings that sequences of a pack have in common, computed once: what a causal decoder makes of
equal tokens at equal positions is equal.

The samples of a group share their prompt. Nobody has to say so: neighbours in a pack are compared.
"""

from bisect import bisect
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORTH = 0.03  # share of a pack's tokens below which nothing is shared


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """A pack of N tokens laid out anew in N' <= N: each run of sequences as its common beginning,
    then what each goes on with.

    keep [N']: where in the pack each token is taken from; expand [N]: where it is now. starts [S' +
    1]: the new segments, each causal in itself. reads: (first, last, begin, end): tokens first ..
    last - 1 also read all of begin .. end - 1.
    """

    keep: Tensor
    expand: Tensor
    starts: Tensor
    reads: tuple[tuple[int, int, int, int], ...]


def share_prefixes(tokens: Tensor, positions: Tensor, starts: Tensor) -> SharedPrefixes | None:
    """None where sharing would save less than WORTH of the pack."""
    words, places, bounds = tokens.numpy(), positions.numpy(), starts.numpy()
    common = [
        _common(words, places, a, b, c)
        for a, b, c in zip(bounds, bounds[1:], bounds[2:], strict=False)
    ]
    if sum(common) < WORTH * len(words):
        return None
    runs = _runs(common)
    if sum((last - first) * least for first, last, least in runs) < WORTH * len(words):
        return None
    keep, sizes, reads = list[NDArray[np.int64]](), list[int](), list[tuple[int, int, int, int]]()
    expand, at = np.empty(len(words), dtype=np.int64), 0
    for first, last, least in runs:
        begin, end = at, at + least
        if least:
            keep.append(np.arange(bounds[first], bounds[first] + least))
            sizes.append(least)
            at = end
        for i in range(first, last + 1):
            own = np.arange(bounds[i] + least, bounds[i + 1])
            keep.append(own)
            sizes.append(len(own))
            expand[bounds[i] : bounds[i] + least] = np.arange(begin, end)
            expand[own] = np.arange(at, at + len(own))
            at += len(own)
        if least:
            reads.append((end, at, begin, end))
    layout = np.concatenate([[0], np.cumsum(sizes)])
    return SharedPrefixes(
        torch.from_numpy(np.concatenate(keep)),
        torch.from_numpy(expand),
        torch.from_numpy(layout),
        tuple(reads),
    )


def _common(words: NDArray[np.int64], places: NDArray[np.int64], a: int, b: int, c: int) -> int:
    """How many tokens the sequences a .. b - 1 and b .. c - 1 begin with in common, less than the
    whole of either.
    """
    most = min(b - a, c - b) - 1
    same = (words[a : a + most] == words[b : b + most]) & (
        places[a : a + most] == places[b : b + most]
    )
    return most if same.all() else int(same.argmin())


def _runs(common: list[int]) -> list[tuple[int, int, int]]:
    """(first, last, tokens shared) of runs of sequences; common [S - 1] is what each has in common
    with the one before it.

    A run is cut where it has least in common if its parts save more than the whole.
    """
    whole, cuts = np.array(common, dtype=np.int64), [-1, len(common)]

    def least(first: int, last: int) -> int:
        return int(whole[first:last].min()) if last > first else 0

    def saved(first: int, last: int) -> int:
        return (last - first) * least(first, last)

    for i in np.argsort(whole, kind="stable").tolist():  # from the least in common upwards
        place = bisect(cuts, i)
        first, last = cuts[place - 1] + 1, cuts[place]
        if saved(first, i) + saved(i + 1, last) > saved(first, last):
            cuts.insert(place, i)
    return [(a + 1, b, least(a + 1, b)) for a, b in pairwise(cuts)]

"""Prefixes that neighbouring sequences of a pack share, such as a group's prompt, computed once.

A causal decoder's states of equal tokens at equal positions are equal. Neighbours are compared, so
no caller has to name the prefixes.
"""

from bisect import bisect
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORTH = 0.03  # share of a pack's tokens that sharing must save


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """A pack of N tokens in N' <= N: for each run of sequences their prefix, then the rest of each.

    keep [N']: the place in the pack of each token that is kept. expand [N]: the place among these
    of each token of the pack. starts [S' + 1]: the new segments, each causal in itself. reads:
    (first, last, begin, end), tokens first .. last - 1 also read begin .. end - 1.
    """

    keep: Tensor
    expand: Tensor
    starts: Tensor
    reads: tuple[tuple[int, int, int, int], ...]


def share_prefixes(tokens: Tensor, positions: Tensor, starts: Tensor) -> SharedPrefixes | None:
    """Finds the prefixes of a pack; None where sharing them saves less than WORTH of its tokens."""
    ids, places, bounds = tokens.numpy(), positions.numpy(), starts.numpy()
    common = [
        _common(ids, places, a, b, c)
        for a, b, c in zip(bounds, bounds[1:], bounds[2:], strict=False)
    ]
    if sum(common) < WORTH * len(ids):
        return None
    runs = _runs(common)
    if sum((last - first) * prefix for first, last, prefix in runs) < WORTH * len(ids):
        return None
    keep, sizes, reads = list[NDArray[np.int64]](), list[int](), list[tuple[int, int, int, int]]()
    expand, at = np.empty(len(ids), dtype=np.int64), 0
    for first, last, prefix in runs:
        begin, end = at, at + prefix
        if prefix:
            keep.append(np.arange(bounds[first], bounds[first] + prefix))
            sizes.append(prefix)
            at = end
        for i in range(first, last + 1):
            own = np.arange(bounds[i] + prefix, bounds[i + 1])
            keep.append(own)
            sizes.append(len(own))
            expand[bounds[i] : bounds[i] + prefix] = np.arange(begin, end)
            expand[own] = np.arange(at, at + len(own))
            at += len(own)
        if prefix:
            reads.append((end, at, begin, end))
    layout = np.concatenate([[0], np.cumsum(sizes)])
    return SharedPrefixes(
        torch.from_numpy(np.concatenate(keep)),
        torch.from_numpy(expand),
        torch.from_numpy(layout),
        tuple(reads),
    )


def _common(ids: NDArray[np.int64], places: NDArray[np.int64], a: int, b: int, c: int) -> int:
    """The length of the prefix that sequences a .. b - 1 and b .. c - 1 share, less than either."""
    most = min(b - a, c - b) - 1
    same = ids[a : a + most] == ids[b : b + most]
    same &= places[a : a + most] == places[b : b + most]
    return most if same.all() else int(same.argmin())


def _runs(common: list[int]) -> list[tuple[int, int, int]]:
    """Returns runs of sequences as (first, last, length of their prefix).

    common [S - 1]: the length of the prefix that each sequence shares with the one before it. A run
    is cut where neighbours share least, if its parts save more than the whole.
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

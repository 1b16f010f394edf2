"""Samples -> one packed batch. No padding: sequences stand behind one another, and `starts` says
where each begins.

What a loss reads exists for the M chosen tokens only, so prompts, tool output and padding cannot
reach it, whatever they hold.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from whet.types import Sample

LAYOUT = ("tokens", "positions", "starts", "chosen", "sequence")


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """S sequences of N tokens in all, of which the policy chose M. `chosen` [M] are their indices
    in the pack, `sequence` [M] the sequence of each.

    Every field that a subclass adds is [M], a number for each chosen token.
    """

    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    starts: Int[Tensor, " s1"]
    chosen: Int[Tensor, " m"]
    sequence: Int[Tensor, " m"]
    weight: Float[
        Tensor, " m"
    ]  # of the token in the loss: the denominator, fixed before anything is split

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int[Tensor, " s"]:
        """Chosen tokens of each sequence."""
        return torch.bincount(self.sequence, minlength=self.sequences)

    def to(self, device: str | torch.device) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def seams(self) -> list[int]:
        """Sequences [..] at which a micro-batch may begin, and S: any, unless a loss reads several
        together.
        """
        return list(range(self.sequences + 1))

    def split(self, tokens: int) -> Iterator[Self]:
        """Micro-batches of whole sequences, at most `tokens` tokens each (what is longer and cannot
        be split stands alone).

        Weights travel along, so sums over micro-batches equal the sum over the batch.
        """
        bounds = cast(list[int], self.starts.tolist())  # pyright: ignore[reportUnknownMemberType]
        first = 0
        for here, there in pairwise(self.seams()):
            if here > first and bounds[there] - bounds[first] > tokens:
                yield self.take(range(first, here))
                first = here
        yield self.take(range(first, self.sequences))

    def take(self, sequences: Sequence[int]) -> Self:
        """Some sequences, in ascending order, as a batch of their own."""
        keep = torch.zeros(self.sequences, dtype=torch.bool, device=self.starts.device)
        keep[list(sequences)] = True
        sizes = self.starts.diff()
        n = keep.repeat_interleave(sizes)
        m = keep[self.sequence]
        place = n.cumsum(0) - 1
        named = {f.name: getattr(self, f.name)[m] for f in fields(self) if f.name not in LAYOUT}
        return type(self)(
            tokens=self.tokens[n],
            positions=self.positions[n],
            starts=torch.cat([self.starts[:1] * 0, sizes[keep].cumsum(0)]),
            chosen=place[self.chosen[m]],
            sequence=(keep.cumsum(0) - 1)[self.sequence[m]],
            **named,
        )


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch(Pack):
    """What a policy's loss reads."""

    logp_old: Float[Tensor, " m"]  # under the distribution sampled from
    advantage: Float[Tensor, " m"]
    clone: Float[
        Tensor, " m"
    ]  # of the token's own likelihood, times `weight`; 0 where it is not imitated


@dataclass(frozen=True, slots=True, eq=False)
class ValueBatch(Pack):
    """What a critic's loss reads."""

    target: Float[Tensor, " m"]  # the return that the value is to predict
    value_old: Float[Tensor, " m"]  # what the critic said when the rollout was judged


@dataclass(frozen=True, slots=True, eq=False)
class RankedBatch(Pack):
    """What a loss over pairs of responses to one prompt reads. Sequences of one ranking stand
    behind one another and are never split.
    """

    group: Int[Tensor, " m"]  # the ranking that the token's sequence belongs to
    rank: Int[Tensor, " m"]  # 0 is the best
    reference: Float[Tensor, " m"]  # log-probability under the reference; 0 where none is read

    def seams(self) -> list[int]:
        group = self.of_sequence(self.group).cpu().numpy()
        return [
            0,
            *(i for i in range(1, self.sequences) if group[i] != group[i - 1]),
            self.sequences,
        ]

    def of_sequence(self, numbers: Tensor) -> Tensor:
        """[M], equal for all tokens of a sequence -> [S]."""
        return numbers.new_zeros(self.sequences).index_put((self.sequence,), numbers)


def pack(
    samples: Sequence[Sample],
    advantages: Sequence[float | NDArray[np.floating]],
    weights: Sequence[float],
    dtype: torch.dtype = torch.float32,
    clones: Sequence[float] | None = None,
) -> PolicyBatch:
    """One batch of the S samples.

    `weights` and `clones` [S] hold for every chosen token of a sample; so does an advantage, unless
    it is an array with one number for each. Raises ValueError where the lengths differ or nothing
    is left to pack.
    """
    if not samples:
        raise ValueError("pack: no samples")
    rows = list(zip(samples, advantages, weights, clones or [0.0] * len(samples), strict=True))
    lengths = np.array([len(s.tokens) for s in samples])
    starts = np.concatenate([[0], lengths.cumsum()])
    mask = np.concatenate([s.mask for s in samples])
    chosen = mask.nonzero()[0]
    sequence = np.repeat(np.arange(len(samples)), lengths)[chosen]
    per_token = [np.broadcast_to(np.asarray(a, np.float64), (s.length,)) for s, a, _, _ in rows]
    return PolicyBatch(
        tokens=torch.as_tensor(np.concatenate([s.tokens for s in samples]).astype(np.int64)),
        positions=torch.as_tensor(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
        starts=torch.as_tensor(starts),
        chosen=torch.as_tensor(chosen),
        sequence=torch.as_tensor(sequence),
        logp_old=torch.as_tensor(np.concatenate([s.logp for s in samples])[chosen]).to(dtype),
        advantage=torch.as_tensor(np.concatenate(per_token)).to(dtype),
        weight=torch.tensor([w for _, _, w, _ in rows], dtype=dtype)[sequence],
        clone=torch.tensor([c for _, _, _, c in rows], dtype=dtype)[sequence],
    )

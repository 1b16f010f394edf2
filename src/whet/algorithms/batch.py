"""Packed batches: sequences stand behind one another without padding, `starts` says where.

The numbers of a loss exist for the M chosen tokens only, so that prompts and tool output cannot
reach it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from whet.types import Sample

LAYOUT = ("tokens", "positions", "starts", "chosen", "sequence")


@dataclass(frozen=True, slots=True, eq=False)
class Pack:
    """S sequences of N tokens in all, of which the policy chose M.

    `chosen` [M] are the indices of the chosen tokens in the pack, `sequence` [M] those of their
    sequences. Every field that a subclass adds is [M]: a number for each chosen token.
    """

    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    starts: Int[Tensor, " s1"]
    chosen: Int[Tensor, " m"]
    sequence: Int[Tensor, " m"]
    # of the token in the loss; it holds the denominator, fixed before a batch is split
    weight: Float[Tensor, " m"]

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Int[Tensor, " s"]:
        """Chosen tokens of each sequence."""
        return torch.bincount(self.sequence, minlength=self.sequences)

    def sums(self, numbers: Float[Tensor, " m"]) -> Float[Tensor, " s"]:
        """The sum over the chosen tokens of each sequence."""
        return numbers.new_zeros(self.sequences).index_add(0, self.sequence, numbers)

    def of_sequence(self, numbers: Tensor) -> Tensor:
        """[S] from [M] numbers that are equal for all tokens of a sequence."""
        return numbers.new_zeros(self.sequences).index_put((self.sequence,), numbers)

    def to(self, device: str | torch.device) -> Self:
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def seams(self) -> list[int]:
        """The sequences at which a micro-batch may begin, and S; here every sequence."""
        return list(range(self.sequences + 1))

    def split(self, tokens: int) -> Iterator[Self]:
        """Micro-batches of whole sequences, at most `tokens` tokens each.

        A longer sequence stands alone. Weights travel along, so that sums over micro-batches equal
        the sum over the batch.
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
    """The numbers that a policy's loss reads."""

    logp_old: Float[Tensor, " m"]  # under the distribution sampled from
    advantage: Float[Tensor, " m"]
    clone: Float[Tensor, " m"]  # weight of the token's log-likelihood; 0 where not imitated


@dataclass(frozen=True, slots=True, eq=False)
class ValueBatch(Pack):
    """The numbers that the loss of a critic, or of a token-level reward model, reads."""

    target: Float[Tensor, " m"]  # the return to predict; 1 or 0 for a right or a wrong answer
    value_old: Float[Tensor, " m"]  # the model's own value before it learns from the rollout


@dataclass(frozen=True, slots=True, eq=False)
class RankedBatch(Pack):
    """The numbers that a loss over pairs of responses to one prompt reads.

    Sequences of one ranking stand behind one another and are never split.
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


def pack(
    samples: Sequence[Sample],
    advantages: Sequence[float],
    weights: Sequence[float],
    dtype: torch.dtype = torch.float32,
    clones: Sequence[float] | None = None,
) -> PolicyBatch:
    """One batch of S samples.

    `advantages`, `weights` and `clones` [S] hold for every chosen token of a sample. Raises
    ValueError where the lengths differ or there is no sample.
    """
    if not samples:
        raise ValueError("pack: no samples")
    numbers = [advantages, weights, clones or [0.0] * len(samples)]
    if any(len(x) != len(samples) for x in numbers):
        raise ValueError(f"pack: {len(samples)} samples, and numbers for {[*map(len, numbers)]}")
    lengths = np.array([len(s.tokens) for s in samples])
    starts = np.concatenate([[0], lengths.cumsum()])
    mask = np.concatenate([s.mask for s in samples])
    chosen = mask.nonzero()[0]
    sequence = torch.as_tensor(np.repeat(np.arange(len(samples)), lengths)[chosen])
    advantage, weight, clone = (torch.tensor(x, dtype=dtype)[sequence] for x in numbers)
    return PolicyBatch(
        tokens=torch.as_tensor(np.concatenate([s.tokens for s in samples]).astype(np.int64)),
        positions=torch.as_tensor(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
        starts=torch.as_tensor(starts),
        chosen=torch.as_tensor(chosen),
        sequence=sequence,
        weight=weight,
        logp_old=torch.as_tensor(np.concatenate([s.logp for s in samples])[chosen]).to(dtype),
        advantage=advantage,
        clone=clone,
    )

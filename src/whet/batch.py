"""Samples -> one packed batch. No padding: sequences stand behind one another, and `starts` says where each begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet.types import Sample


@dataclass(frozen=True, slots=True, eq=False)
class PolicyBatch:
    """S sequences of N tokens in all, of which the policy chose M.

    What a loss reads exists for the M chosen tokens only, so prompts, tool output and padding cannot reach it, whatever they
    hold. `chosen` [M] are their indices in the pack, `sequence` [M] the sequence each belongs to.
    """

    tokens: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    starts: Int[Tensor, " s1"]
    chosen: Int[Tensor, " m"]
    sequence: Int[Tensor, " m"]
    logp_old: Float[Tensor, " m"]  # under the distribution sampled from
    advantage: Float[Tensor, " m"]
    weight: Float[Tensor, " m"]  # of the token in the loss: the denominator, fixed before anything is split

    @property
    def sequences(self) -> int:
        return len(self.starts) - 1

    def to(self, device: str | torch.device) -> "PolicyBatch":
        return PolicyBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def split(self, tokens: int) -> Iterator["PolicyBatch"]:
        """Micro-batches of whole sequences, at most `tokens` tokens each (a longer sequence stands alone).

        Weights travel along, so sums over micro-batches equal the sum over the batch.
        """
        bounds = cast(list[int], self.starts.tolist())  # pyright: ignore[reportUnknownMemberType]
        first = 0
        for last in range(1, self.sequences + 1):
            if last == self.sequences or bounds[last + 1] - bounds[first] > tokens:
                yield self.slice(first, last)
                first = last

    def slice(self, first: int, last: int) -> "PolicyBatch":
        """Sequences first .. last - 1 as a batch of their own."""
        a, b = int(self.starts[first]), int(self.starts[last])
        m: Bool[Tensor, " m"] = (self.sequence >= first) & (self.sequence < last)
        return PolicyBatch(
            tokens=self.tokens[a:b],
            positions=self.positions[a:b],
            starts=self.starts[first : last + 1] - a,
            chosen=self.chosen[m] - a,
            sequence=self.sequence[m] - first,
            logp_old=self.logp_old[m],
            advantage=self.advantage[m],
            weight=self.weight[m],
        )


def pack(
    samples: Sequence[Sample], advantages: Sequence[float], weights: Sequence[float], dtype: torch.dtype = torch.float32
) -> PolicyBatch:
    """One batch of the S samples; `advantages` [S] and `weights` [S] hold for every chosen token of a sample.

    Raises ValueError where the lengths differ or nothing is left to pack.
    """
    if not samples:
        raise ValueError("pack: no samples")
    rows = list(zip(samples, advantages, weights, strict=True))
    lengths = np.array([len(s.tokens) for s in samples])
    starts = np.concatenate([[0], lengths.cumsum()])
    mask = np.concatenate([s.mask for s in samples])
    chosen = mask.nonzero()[0]
    sequence = np.repeat(np.arange(len(samples)), lengths)[chosen]
    return PolicyBatch(
        tokens=torch.as_tensor(np.concatenate([s.tokens for s in samples]).astype(np.int64)),
        positions=torch.as_tensor(np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)),
        starts=torch.as_tensor(starts),
        chosen=torch.as_tensor(chosen),
        sequence=torch.as_tensor(sequence),
        logp_old=torch.as_tensor(np.concatenate([s.logp for s in samples])[chosen]).to(dtype),
        advantage=torch.tensor([a for _, a, _ in rows], dtype=dtype)[sequence],
        weight=torch.tensor([w for _, _, w in rows], dtype=dtype)[sequence],
    )

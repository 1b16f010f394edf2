"""Random numbers for sampling, and drawing tokens with them.

Every token of every sample has a uniform number of its own, a hash of (seed, prompt id, occurrence
of that id in the call, sample index, token index). So a sample does not depend on its batch mates,
on the batch's size or on the order of work.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from whet.kernels import BLOCK, compiled, usable
from whet.model.logprobs import processed
from whet.types import Prompt, Sampling

GOLDEN, MIX_1, MIX_2 = (
    np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def sample_keys(prompts: Sequence[Prompt], seed: int, n: int) -> NDArray[np.uint64]:
    """Returns a 64-bit key per sample [P * n], prompt by prompt; a repeated id gets other keys."""
    seen: Counter[str] = Counter()
    keys = np.empty(len(prompts) * n, dtype=np.uint64)
    for i, prompt in enumerate(prompts):
        stem = blake2b(
            f"{seed}/{seen[prompt.id]}/{prompt.id}".encode("utf-8", "surrogatepass"), digest_size=8
        )
        seen[prompt.id] += 1
        for j in range(n):
            whole = stem.copy()
            whole.update(j.to_bytes(8, "little"))
            keys[i * n + j] = int.from_bytes(whole.digest(), "little")
    return keys


def uniforms(keys: NDArray[np.uint64], first: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Returns numbers in [0, 1) [R, count] for R samples, from token index `first` [R] on.

    SplitMix64 as a counter-based generator (Steele, Lea and Flood, OOPSLA 2014): the t-th number of
    a key needs no other.

    >>> import numpy as np
    >>> key = np.array([42], dtype=np.uint64)
    >>> bool(uniforms(key, np.array([3]), 2)[0, 1] == uniforms(key, np.array([4]), 1)[0, 0])
    True
    """
    index = first[:, None].astype(np.uint64) + np.arange(1, count + 1, dtype=np.uint64)
    z = keys[:, None] + index * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * MIX_1
    z = (z ^ (z >> np.uint64(27))) * MIX_2
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def inverse_cdf(logp: Float[Tensor, "r v"], u: Float[Tensor, " r"]) -> Int[Tensor, " r"]:
    """Returns, per row, the token whose slice of the cumulative distribution contains u.

    u is in [0, 1]. A token of probability 0 is never returned.
    """
    vocabulary = logp.shape[1]
    likely, missing = logp.exp(), -vocabulary % BLOCK
    blocks = (F.pad(likely, (0, missing)) if missing else likely).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [R, B] where each block's slice ends
    target, zero = u[:, None] * ends[:, -1:], ends.new_zeros(())
    block = _slice(ends, target)
    begin = ends.gather(1, (block - 1).clamp_min(0)).where(block > 0, zero)
    inside = (
        blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))
        .squeeze(1)
        .cumsum(-1, dtype=torch.float64)
    )
    return (block * BLOCK + _slice(inside, target - begin)).squeeze(1).clamp_max_(vocabulary - 1)


def _slice(ends: Float[Tensor, "r n"], target: Float[Tensor, "r 1"]) -> Int[Tensor, "r 1"]:
    """Returns the slice that contains target: the first that ends beyond it, never an empty one."""
    total = ends[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(ends, target, right=True).clamp_max_(ends.shape[1] - 1)


def draw(
    logits: Float[Tensor, "r v"], u: Float[Tensor, " r"], sampling: Sampling
) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"], Bool[Tensor, " r"]]:
    """Returns tokens [R], their log-probabilities [R] under `processed`, and broken rows [R].

    A row is broken where a logit is not finite; its token means nothing. Temperature 0 takes the
    most likely token.
    """
    plain = (
        sampling.temperature > 0
        and sampling.top_p >= 1.0
        and not 0 < sampling.top_k < logits.shape[1]
    )
    if plain and usable(logits) and logits.is_contiguous():
        return _drawn(logits, u, sampling.temperature)
    logp = processed(logits, sampling.temperature, sampling.top_p, sampling.top_k)
    tokens = logp.argmax(-1) if sampling.temperature == 0 else inverse_cdf(logp, u)
    broken = ~logits.sum(-1, dtype=logp.dtype).isfinite()
    return tokens, logp.gather(1, tokens[:, None]).squeeze(1), broken


def _drawn(logits: Tensor, u: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """`draw` in one pass over each row, compiled."""
    rows, vocabulary = logits.shape
    tokens, logp = torch.empty(rows, dtype=torch.int64), logits.new_empty(rows)
    broken = torch.empty(rows, dtype=torch.bool)
    scratch = logits.new_empty(torch.get_num_threads(), vocabulary + vocabulary // BLOCK + 1)
    tensors = (logits, u.contiguous(), tokens, logp, broken, scratch)
    compiled().call("draw", tensors, rows, vocabulary, float(temperature), work=logits.numel())
    return tokens, logp, broken

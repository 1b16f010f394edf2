"""What every engine shares: the checked Requests, the Notes of each step, and Samples from Notes."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whet.engines.sampling import sample_keys
from whet.errors import DataError, ModelError, WhetError
from whet.types import Prompt, Sample, Sampling


class Decoder(Protocol):
    """The part of a tokenizer that an engine needs; it leaves special tokens out of the text."""

    def decode(self, tokens: Sequence[int]) -> str: ...


class Requests:
    """P prompts x n samples, checked; sample j of prompt i has number i * n + j.

    Raises DataError for an empty prompt or one with ids beyond the vocabulary. Raises WhetError for
    settings out of range, and for a prompt that with `max_tokens` exceeds the model's positions.
    """

    def __init__(
        self, prompts: Sequence[Prompt], sampling: Sampling, vocab: int, max_positions: int
    ) -> None:
        _check_sampling(sampling)
        for prompt in prompts:
            _check_prompt(prompt, sampling, vocab, max_positions)
        self.prompts, self.sampling = prompts, sampling
        self.total = len(prompts) * sampling.n
        self.lengths = np.array([len(p.tokens) for p in prompts], dtype=np.int64)
        self.keys = sample_keys(prompts, sampling.seed, sampling.n)
        self.limits = np.full(self.total, sampling.max_tokens)  # the most tokens of each sample

    def queue(self) -> NDArray[np.int64]:
        """Returns the samples' numbers, longest prompts first, so that packs have like lengths."""
        n = self.sampling.n
        order = np.argsort(-self.lengths, kind="stable")
        return (order[:, None] * n + np.arange(n)).reshape(-1)

    def not_finite(self, number: int, token: int) -> ModelError:
        """Returns the error for logits that are not finite at a token of sample `number`."""
        prompt = self.prompts[number // self.sampling.n]
        return ModelError(
            f"prompt {prompt.id!r}: the model's logits at position "
            f"{len(prompt.tokens) + token - 1} are not finite; "
            "its weights are broken: go back to an earlier checkpoint and lower the learning rate"
        )


def _check_sampling(s: Sampling) -> None:
    limits = {
        "n": s.n >= 1,
        "max_tokens": s.max_tokens >= 1,
        "temperature": math.isfinite(s.temperature) and s.temperature >= 0,
        "top_p": 0 < s.top_p <= 1,
        "top_k": s.top_k >= 0,
    }
    for name, good in limits.items():
        if not good:
            raise WhetError(
                f"sampling: {name} = {getattr(s, name)} cannot be used; n, max_tokens and top_p are "
                "above 0, the others not below"
            )


def _check_prompt(prompt: Prompt, sampling: Sampling, vocab: int, max_positions: int) -> None:
    if not prompt.tokens:
        raise DataError(
            f"prompt {prompt.id!r} has no tokens; a model needs at least one to go on from"
        )
    if min(prompt.tokens) < 0 or max(prompt.tokens) >= vocab:
        unknown = next(t for t in prompt.tokens if not 0 <= t < vocab)
        raise DataError(
            f"prompt {prompt.id!r} has token {unknown}, but the model knows 0 to {vocab - 1}: "
            "use the tokenizer that belongs to the model"
        )
    if len(prompt.tokens) + sampling.max_tokens > max_positions:
        raise WhetError(
            f"prompt {prompt.id!r}: {len(prompt.tokens)} tokens and max_tokens "
            f"{sampling.max_tokens} are more than the model's {max_positions} positions; set "
            f"max_tokens to {max(0, max_positions - len(prompt.tokens))} or less, or shorten the prompt"
        )


class Notes:
    """Tokens and log-probabilities of each step; they stay on the device until `samples`."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.spans: list[tuple[NDArray[np.int64], list[Tensor], list[Tensor]]] = []

    def rows(self, numbers: NDArray[np.int64]) -> None:
        """From the next step on, row r belongs to sample numbers[r]."""
        self.spans.append((numbers.copy(), [], []))

    def add(self, tokens: Tensor, logp: Tensor) -> None:
        """Adds a step's tokens [R] and log-probabilities [R]; after a sample's end they are ignored."""
        _, kept, likely = self.spans[-1]
        kept.append(tokens)
        likely.append(logp)

    def samples(self, eos: Sequence[int], chat: Decoder, version: int) -> list[tuple[Sample, ...]]:
        """Returns P tuples of n samples, cut after their first token of `eos` or at their limit."""
        spans = [
            (n, torch.stack(t).cpu().numpy(), torch.stack(p).float().cpu().numpy())
            for n, t, p in self.spans
            if t
        ]
        number = np.concatenate([np.tile(n, len(t)) for n, t, _ in spans])
        order = np.argsort(number, kind="stable")
        tokens = np.concatenate([t.reshape(-1) for _, t, _ in spans])[order].astype(np.int64)
        logp = np.concatenate([p.reshape(-1) for _, _, p in spans])[order].astype(np.float32)
        bounds = np.searchsorted(number[order], np.arange(self.requests.total + 1))
        ends = np.append(np.flatnonzero(np.isin(tokens, list(eos))), len(tokens))
        first_end = ends[np.searchsorted(ends, bounds[:-1])]
        n = self.requests.sampling.n
        made: list[Sample] = []
        for i in range(self.requests.total):
            begin = int(bounds[i])
            last = min(int(bounds[i + 1]), int(begin + self.requests.limits[i]))
            stopped = int(first_end[i]) < last
            stop = int(first_end[i]) + 1 if stopped else last
            prompt = self.requests.prompts[i // n].tokens
            chosen = tokens[begin:stop]
            no_logp = np.zeros(len(prompt), dtype=np.float32)
            made.append(
                Sample(
                    tokens=np.concatenate([np.array(prompt, dtype=np.int64), chosen]),
                    mask=np.arange(len(prompt) + len(chosen)) >= len(prompt),
                    logp=np.concatenate([no_logp, logp[begin:stop]]),
                    text=chat.decode(chosen.tolist()),
                    finish="stop" if stopped else "length",
                    version=version,
                )
            )
        return [tuple(made[i : i + n]) for i in range(0, len(made), n)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, there is no dropout and no gradient; afterwards every module's mode is as before."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training

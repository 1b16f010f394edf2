"""The engine for any model of transformers: the native engine's random numbers and distribution.

Batches of left-padded prompts, each read once for its group; rows that have ended are dropped. It
is simple, not fast.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whet.engines import ROWS
from whet.engines.requests import Decoder, Notes, Requests, evaluating
from whet.engines.sampling import draw, uniforms
from whet.model.config import ModelConfig
from whet.types import Progress, Prompt, Sample, Sampling


class Adapted(Protocol):
    """A model/huggingface.py model, as far as the engine needs it."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def hf(self) -> nn.Module:
        """The causal language model of transformers; its `config` is transformers' own."""
        ...


class HuggingFaceEngine:
    """Samples from `model.hf` with its weights at the time of the call.

    `version` is stamped on samples; at most `rows` samples are drawn at once. generate raises DataError
    and WhetError as `Requests` does, and ModelError where logits are not finite.
    """

    def __init__(
        self, model: Adapted, chat: Decoder, eos: Sequence[int], rows: int = ROWS, version: int = 0
    ) -> None:
        if rows < 1:
            raise ValueError(f"HuggingFaceEngine: rows is {rows}; at least one is needed")
        self.model, self.chat, self.eos = model, chat, tuple(eos)
        self.rows, self.version = rows, version

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[tuple[Sample, ...]]:
        """Returns `sampling.n` samples for each of P prompts; `progress` gets (ended, total)."""
        c = self.model.config
        requests = Requests(prompts, sampling, c.vocab, c.max_positions)
        if not requests.total:
            return []
        notes, queue = Notes(requests), requests.queue()
        with evaluating(self.model.hf):
            for at in range(0, len(queue), self.rows):
                _Batch(self.model.hf, requests, queue[at : at + self.rows], self.eos).run(notes)
                if progress is not None:
                    progress(min(at + self.rows, len(queue)), len(queue))
        return notes.samples(self.eos, self.chat, self.version)


class _Batch:
    """R samples drawn side by side; `numbers` [R] says which."""

    def __init__(
        self, hf: nn.Module, requests: Requests, numbers: NDArray[np.int64], eos: Sequence[int]
    ) -> None:
        from transformers import DynamicCache

        self.hf, self.requests, self.numbers = hf, requests, numbers
        self.device = next(hf.parameters()).device
        self.eos = torch.tensor(eos, dtype=torch.int64, device=self.device)
        self.past: Any = DynamicCache(config=cast(Any, hf.config))
        order, which = np.unique(numbers // requests.sampling.n, return_inverse=True)
        width = int(requests.lengths[order].max())
        tokens = np.zeros((len(order), width), dtype=np.int64)
        for row, prompt in enumerate(order):
            tokens[row, width - requests.lengths[prompt] :] = requests.prompts[prompt].tokens
        real = np.arange(width) >= width - requests.lengths[order][:, None]
        self.mask = torch.from_numpy(real.astype(np.int64)).to(self.device)  # [R, seen]
        self.positions = (self.mask.cumsum(1) - 1).clamp_min(0)
        self.logits = self.forward(torch.from_numpy(tokens).to(self.device))  # [R, vocab]
        self.positions = self.positions[:, -1:]  # [R, 1]
        self.select(torch.from_numpy(which.reshape(-1)).to(self.device))

    def forward(self, tokens: Tensor) -> Tensor:
        """Adds tokens [R, k] to the cache; returns the logits after the last."""
        out = self.hf(
            input_ids=tokens,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.past,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows of the batch; a row may be named several times."""
        self.past.batch_select_indices(rows)
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.logits = self.logits[rows]

    def run(self, notes: Notes) -> None:
        most = self.requests.sampling.max_tokens
        ended = torch.zeros(len(self.numbers), dtype=torch.bool, device=self.device)
        notes.rows(self.numbers)
        for step in range(most):
            keys, first = self.requests.keys[self.numbers], np.full(len(self.numbers), step)
            u = torch.from_numpy(uniforms(keys, first, 1)[:, 0]).to(self.device)
            tokens, logp, broken = draw(self.logits, u, self.requests.sampling)
            broken &= ~ended
            if bool(broken.any()):
                raise self.requests.not_finite(int(self.numbers[int(broken.nonzero()[0])]), step)
            notes.add(tokens, logp)
            ended |= torch.isin(tokens, self.eos)
            over = int(ended.sum())
            if over == len(self.numbers) or step + 1 == most:
                return
            if over * 8 >= len(self.numbers):
                alive = (~ended).nonzero().squeeze(1)
                self.select(alive)
                self.numbers = self.numbers[alive.cpu().numpy()]
                tokens, ended = tokens[alive], ended[alive]
                notes.rows(self.numbers)
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
            self.positions = self.positions + 1
            self.logits = self.forward(tokens[:, None])

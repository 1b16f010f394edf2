"""Decode steps that are replayed from a CUDA graph, on a GPU; `decoding` picks how to step.

Elsewhere a step launches its operations one by one (step.py).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from whet.engines.cache import Cache
from whet.engines.static_cache import StaticCache
from whet.engines.step import Step
from whet.model.flash_attention import kernel_for
from whet.model.transformer import Transformer

Run = Callable[[], None]


class Captures(Protocol):
    """Turns a step into one launch."""

    def warm(self, run: Run) -> None:
        """Runs a step on the stream where it will be captured."""
        ...

    def captured(self, run: Run) -> Run:
        """Returns a step's operations, to be run again on the same tensors.

        Raises RuntimeError where they cannot be captured.
        """
        ...


class Graphs:
    """CUDA graphs, one after another in the same memory."""

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, run: Run) -> None:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            run()
        current.wait_stream(self.stream)

    def captured(self, run: Run) -> Run:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self.stream.wait_stream(current)
        # torch.cuda.graph would collect garbage and empty the allocator's cache first.
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        current.wait_stream(self.stream)
        return graph.replay


class Replayed:
    """A `Step` over a StaticCache: run once, then captured, then replayed until the cache changes.

    The next step overwrites the hidden states.
    """

    def __init__(self, model: Transformer, cache: StaticCache, captures: Captures | None) -> None:
        self.model, self.cache, self.captures = model, cache, captures
        self.views, self.again, self.ran = -1, None, False

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        cache, n = self.cache, len(tokens)
        if self.views != cache.views:
            self._fit()
        self.tokens[:n].copy_(tokens)
        self.positions[:n].copy_(positions)
        cache.now.fill_(cache.column)
        self._go()
        return self.hidden[:n]

    def _fit(self) -> None:
        room, weight = len(self.cache.rows), self.model.embed.weight
        self.tokens = torch.zeros(room, dtype=torch.int64, device=weight.device)
        self.positions = torch.zeros_like(self.tokens)
        self.hidden = weight.new_zeros(room, self.model.config.hidden)
        self.fresh: Run | None = None
        self.views, self.ran = self.cache.views, False

    def _go(self) -> None:
        if self.captures is None:
            return self._run()
        if not self.ran:
            self.ran = True
            return self.captures.warm(self._run)
        if self.fresh is None:
            try:
                # The former graph, in `again`, keeps the memory alive until here.
                self.fresh = self.again = self.captures.captured(self._run)
            except RuntimeError:  # this driver or kernel cannot be captured: launch one by one
                self.captures = None
                return self._run()
        self.fresh()

    def _run(self) -> None:
        self.cache.begin()
        self.hidden.copy_(self.model(self.tokens, self.positions, self.cache))


def decoding(model: Transformer, most: int, positions: int) -> tuple[Cache, Step | Replayed]:
    """Returns a cache for rows of at most `most` tokens, and the step that fills it.

    No position may be above `positions`.
    """
    weight = model.embed.weight
    kernel = kernel_for(weight, model.config.head_dim)
    if kernel is None:
        cache = Cache(model.config, most, weight)
        return cache, Step(model, cache, positions)
    cache = StaticCache(model.config, most, weight, kernel)
    return cache, Replayed(model, cache, Graphs(weight.device) if weight.is_cuda else None)

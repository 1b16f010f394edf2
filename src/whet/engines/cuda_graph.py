"""How a sampler takes its steps: on a GPU whose kernels can do it replayed from a CUDA graph,
elsewhere one operation after the other.
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
    """What turns a step into one launch."""

    def warm(self, run: Run) -> None:
        """Runs it as it will be captured."""
        ...

    def captured(self, run: Run) -> Run:
        """Its operations, to be run again on the same tensors. Raises RuntimeError where that
        cannot be.
        """
        ...


class Graphs:
    """CUDA's graphs, one after another in the same memory."""

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
        with torch.cuda.stream(
            self.stream
        ):  # torch.cuda.graph would collect garbage and empty the cache of memory first
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        current.wait_stream(self.stream)
        return graph.replay


class Replayed:
    """What `Step` is, over a cache of slots. A step is captured once it has run where it is; until
    the cache's views change it is replayed.

    The hidden states are overwritten by the next step.
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
                self.fresh = self.again = self.captures.captured(
                    self._run
                )  # what `again` was keeps the memory until here
            except (
                RuntimeError
            ):  # a driver or a kernel that cannot be captured: the same step, launched bit by bit
                self.captures = None
                return self._run()
        self.fresh()

    def _run(self) -> None:
        self.cache.begin()
        self.hidden.copy_(self.model(self.tokens, self.positions, self.cache))


def decoding(model: Transformer, most: int, positions: int) -> tuple[Cache, Step | Replayed]:
    """A cache for rows of at most `most` tokens, and the step that fills it; `positions` bounds
    those that are asked for.
    """
    weight = model.embed.weight
    kernel = kernel_for(weight, model.config.head_dim)
    if kernel is None:
        cache = Cache(model.config, most, weight)
        return cache, Step(model, cache, positions)
    slots = StaticCache(model.config, most, weight, kernel)
    return slots, Replayed(model, slots, Graphs(weight.device) if weight.is_cuda else None)

"""A linear map, which while it only samples may hold its weight in the order that the compiled
product reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from whet.kernels import packed, product, usable


class Map(nn.Module):
    """What maps linearly, by one matrix where it has one now."""

    packed: Tensor | None = None  # the matrix, while `ready`

    @property
    def matrix(self) -> Float[Tensor, "o i"] | None: ...


class Linear(nn.Linear, Map):
    """y = x W^T + b."""

    @property
    def matrix(self) -> Float[Tensor, "o i"]:
        return self.weight

    def forward(self, input: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return mapped(input, self.weight, self.bias, self.packed)


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, ready: Tensor | None) -> Tensor:
    """x [n, i] W^T + b, by the compiled product where W is `ready` for it."""
    return F.linear(x, weight, bias) if ready is None else product(x, ready, bias, len(weight))


@contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """Packs the linear maps of a decoder for sampling: a row's result then depends on that row
    alone, bit for bit. Weights must not change inside, and nothing is differentiated. On other
    devices and in other number formats nothing is packed.
    """
    held = [m for m in model.modules() if isinstance(m, Map)]
    try:
        for module in held:
            if module.matrix is not None and usable(module.matrix):
                module.packed = packed(module.matrix)
        yield
    finally:
        for module in held:
            module.packed = None

"""The decoder's linear maps, which hold their weights packed while the model samples."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from whet.kernels import packed, product, usable


class Map(nn.Module):
    """A linear map: a Linear, or one with adapters (lora.py)."""

    packed: Tensor | None = None  # the matrix in the order of the compiled product, while `ready`

    @property
    def matrix(self) -> Float[Tensor, "o i"] | None:
        """The one matrix that the map is, or None where adapters stand beside it."""
        ...


class Linear(nn.Linear, Map):
    """y = x W^T + b."""

    @property
    def matrix(self) -> Float[Tensor, "o i"]:
        return self.weight

    def forward(self, input: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        return mapped(input, self.weight, self.bias, self.packed)


def mapped(x: Tensor, weight: Tensor, bias: Tensor | None, packed: Tensor | None) -> Tensor:
    """Returns x [n, i] W^T + b, by the compiled product where W is packed for it."""
    return F.linear(x, weight, bias) if packed is None else product(x, packed, bias, len(weight))


@contextmanager
def ready(model: nn.Module) -> Iterator[None]:
    """Packs a decoder's linear maps for sampling: a row's bits then depend on that row alone.

    Inside, weights must not change and nothing is differentiated. Only float32 on a CPU is packed.
    """
    maps = [m for m in model.modules() if isinstance(m, Map)]
    try:
        for module in maps:
            if module.matrix is not None and usable(module.matrix):
                module.packed = packed(module.matrix)
        yield
    finally:
        for module in maps:
            module.packed = None

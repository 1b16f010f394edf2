"""Low-rank adapters (LoRA, arXiv:2106.09685).

A frozen weight W [out, in] becomes W + alpha / rank * B A, of which only A and B are trained.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from whet.config.tables import PROJECTIONS, Lora
from whet.errors import ModelError
from whet.model.config import ModelConfig
from whet.model.linear import Linear, Map, mapped
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.model.weights import parts

Model = TypeVar("Model", bound=Policy)
Stack = tuple[tuple[str, int], ...]  # (projection, rows) of each part of a fused matrix


class LoraLinear(Map):
    """A frozen linear map, with A [rank, in] and B [rows, rank] for each adapted projection in it.

    y = W x + b + alpha / rank * B A x (arXiv:2106.09685, eq. 3). A starts Kaiming-uniform, as in
    the paper's released code, so within 1 / sqrt(in). B starts at 0, so that at first y is as
    without adapters.

    >>> plain = Linear(2, 1, bias=False)
    >>> _ = plain.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> lora = LoraLinear(plain, (("o_proj", 1),), Lora(rank=1, alpha=3), torch.Generator())
    >>> _ = lora.lora_a["o_proj"].data.fill_(0.5), lora.lora_b["o_proj"].data.fill_(2.0)
    >>> lora(torch.tensor([[1.0, 1.0]])).item()  # 1 + 2 and 3 / 1 * 2 * (0.5 + 0.5)
    9.0
    """

    def __init__(self, plain: Linear, stack: Stack, lora: Lora, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = plain.weight
        self.bias: nn.Parameter | None = plain.bias
        plain.requires_grad_(False)
        self.stack, self.rank, self.alpha = stack, lora.rank, float(lora.alpha)
        self.lora_a, self.lora_b = nn.ParameterDict(), nn.ParameterDict()
        self.whole: Tensor | None = None  # the weight with adapters folded in, while `folded`
        for name, rows in stack:
            if name in lora.targets:
                a = nn.init.kaiming_uniform_(
                    torch.empty(lora.rank, plain.in_features), math.sqrt(5), generator=generator
                )
                self.lora_a[name] = nn.Parameter(a.to(plain.weight))
                self.lora_b[name] = nn.Parameter(plain.weight.new_zeros(rows, lora.rank))

    @property
    def matrix(self) -> Tensor | None:
        return self.whole

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def forward(self, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
        if self.whole is not None:
            return mapped(x, self.whole, self.bias, self.packed)
        y = F.linear(x, self.weight, self.bias).split([rows for _, rows in self.stack], dim=-1)
        parts = [self._added(part, name, x) for part, (name, _) in zip(y, self.stack, strict=True)]
        return torch.cat(parts, dim=-1)

    def _added(self, y: Tensor, name: str, x: Tensor) -> Tensor:
        if name not in self.lora_a:
            return y
        inner = F.linear(x, self.lora_a[name])
        return torch.addmm(y, inner, self.lora_b[name].t(), alpha=self.scale)

    @torch.no_grad()
    def merged(self) -> Float[Tensor, "o i"]:
        """Returns W + alpha / rank * B A in a new tensor."""
        weight = self.weight.clone()
        parts = weight.split([rows for _, rows in self.stack])
        for (name, _), rows in zip(self.stack, parts, strict=True):
            if name in self.lora_a:
                rows.addmm_(self.lora_b[name], self.lora_a[name], alpha=self.scale)
        return weight


def stacks(shape: ModelConfig) -> dict[str, Stack]:
    """Returns {module of the decoder: the projections stacked in it, by Hugging Face's names}."""
    fused: dict[str, Stack] = {}
    for ours, theirs in parts(shape).items():
        named = tuple((part.name.split(".")[-2], part.shape[0]) for part in theirs)
        if ours.endswith(".weight") and any(name in PROJECTIONS for name, _ in named):
            fused[ours.removesuffix(".weight")] = named
    return fused


def size(shape: ModelConfig, lora: Lora) -> int:
    """Returns the number of parameters in the adapters of a decoder of this shape."""
    stacked = [part for theirs in parts(shape).values() for part in theirs]
    adapted = [
        part
        for part in stacked
        if part.name.endswith(".weight") and part.name.split(".")[-2] in lora.targets
    ]
    return sum(lora.rank * sum(part.shape) for part in adapted)


def adapted(model: nn.Module | Policy) -> dict[str, LoraLinear]:
    """Returns the maps with adapters by name; none for a model without. Its other weights are frozen."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    return {name: module for name, module in modules if isinstance(module, LoraLinear)}


def adapt(model: nn.Module | Policy, lora: Lora | None, seed: int = 0) -> None:
    """Prepares a model for training, in place: its adapters alone, or all weights without `lora`.

    With `lora`, adapters are added unless the model has them. Without it, adapters are merged into
    the weights. Raises ModelError for a model other than whet's decoder, and for one whose adapters
    differ from `lora`.
    """
    maps = adapted(model)
    if lora is None:
        if maps:
            merge(model)
            model.requires_grad_(True)
        return
    if maps:
        rank, alpha, targets = described(maps)
        if (rank, alpha, targets) != (lora.rank, float(lora.alpha), frozenset(lora.targets)):
            names = ", ".join(n for n in PROJECTIONS if n in targets)
            raise ModelError(
                f"the model has adapters of rank {rank} and alpha {alpha:g} on {names}, and lora "
                "asks for others; give it the same, or keep merge = true where they were trained"
            )
        return
    if not isinstance(model, Transformer):
        raise ModelError(
            "lora adapts whet's own decoder only (llama, qwen2, qwen3, smollm3); drop the stage's "
            "lora table"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, stack in stacks(model.config).items():
        if any(part in lora.targets for part, _ in stack):
            plain = model.get_submodule(name)
            assert isinstance(plain, Linear)
            model.set_submodule(name, LoraLinear(plain, stack, lora, generator))


def described(maps: dict[str, LoraLinear]) -> tuple[int, float, frozenset[str]]:
    """Returns rank, alpha and targets of a model's adapters."""
    one = next(iter(maps.values()))
    return one.rank, one.alpha, frozenset(name for m in maps.values() for name in m.lora_a)


def merge(model: nn.Module | Policy) -> None:
    """Turns a model with adapters into one without, in place: W becomes W + alpha / rank * B A.

    The sum is a new tensor, for other models may share W.
    """
    for name, module in adapted(model).items():
        assert isinstance(model, nn.Module)
        out, inside = module.weight.shape
        with torch.device("meta"):
            plain = Linear(inside, out, bias=False)
        plain.weight = nn.Parameter(module.merged(), requires_grad=False)
        plain.register_parameter("bias", module.bias)
        model.set_submodule(name, plain)


def copied(model: Model) -> Model:
    """Returns a copy that shares the frozen weights of a model with adapters, and no others."""
    shared = {id(p): p for p in model.parameters() if not p.requires_grad} if adapted(model) else {}
    return copy.deepcopy(model, dict[int, object](shared))


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, each map with adapters is one matrix: W + alpha / rank * B A, kept beside W."""
    maps = adapted(model).values()
    try:
        for module in maps:
            module.whole = module.merged()
        yield
    finally:
        for module in maps:
            module.whole = None


def frozen(policy: Policy) -> Policy:
    """Returns a copy for reference that is not trained; it shares weights as `copied` does."""
    return copied(policy).eval().requires_grad_(False)

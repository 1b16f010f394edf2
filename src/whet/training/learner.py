"""The trained side: log-probabilities of a pack, gradients over micro-batches, and the optimizer's
step.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from whet import config
from whet.algorithms.batch import Pack
from whet.errors import ModelError, WhetError
from whet.model.logprobs import chosen_logprobs, linear_logprobs, processed
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.storage.checkpoint import State
from whet.types import Sampling

LOST = 3  # steps in a row without a finite gradient, after which there is no going on


class Trained(Protocol):
    """Whatever has weights: a policy, a critic."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def policy_logprobs(
    policy: Policy, batch: Pack, sampling: Sampling, entropy_grad: bool = False
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """log pi of the chosen tokens [M] under the distribution `sampling` draws from, and its entropy
    [M].
    """

    def shape(logits: Tensor, targets: Tensor) -> Tensor:
        return processed(logits, sampling.temperature, sampling.top_p, sampling.top_k, keep=targets)

    hidden = policy.packed(batch.tokens, batch.positions, batch.starts)
    if isinstance(policy, Transformer) and sampling.top_p >= 1.0 and sampling.top_k <= 0:
        return linear_logprobs(
            hidden,
            policy.head.weight,
            batch.tokens,
            batch.chosen,
            sampling.temperature,
            entropy_grad,
        )
    return chosen_logprobs(hidden, policy.logits, batch.tokens, batch.chosen, shape, entropy_grad)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one optimizer step saw: the weighted loss and the norm of its gradient before clipping.
    Where either is not finite the step was `lost`: the weights are as before it."""

    loss: float
    grad_norm: float
    lost: bool = False

    @property
    def values(self) -> dict[str, float]:
        """What is logged of it."""
        return {"lost": 1.0} if self.lost else {"loss": self.loss, "grad_norm": self.grad_norm}


Batch = TypeVar("Batch", bound=Pack)
Model = TypeVar("Model", bound=Trained)


class Learner(Generic[Model]):
    """A model and its optimizers; the only thing in a run that changes.

    Of weights in bfloat16 or float16, where most updates would round to nothing, the optimizers
    have copies in float32: gradients are summed up in them, and after each step the weights are
    what the copies round to (arXiv:1710.03740, section 3.1).
    """

    def __init__(self, model: Model, settings: config.Optimizer, steps: int) -> None:
        self.model = model
        self.settings = settings
        self.steps = max(steps, 1)
        self.done = self.lost = 0  # steps, and those in a row that came to nothing
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in named]
        self.parameters = [_stepped(p) for p in self.weights]
        self.optimizers = _optimizers(
            [(name, p) for (name, _), p in zip(named, self.parameters, strict=True)], settings
        )
        self.base_lr = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    @property
    def lr_scale(self) -> float:
        """What the schedule makes of the learning rate at the next step."""
        s, at = self.settings, self.done
        warm = min(1.0, (at + 1) / s.warmup) if s.warmup else 1.0
        left = 1 - min(1.0, max(0, at - s.warmup) / max(1, self.steps - s.warmup))
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
        return warm * shape[s.schedule]

    def step(
        self, batch: Batch, micro_tokens: int, loss_of: Callable[[Batch], Float[Tensor, " m"]]
    ) -> Stepped:
        """One optimizer step on `batch`: the sum of loss x weight over its micro-batches, whatever
        their size.

        `loss_of(micro)` gives the per-token loss [M]. Where loss or gradient is not finite the
        weights, the moments and the schedule stay as they were. Raises WhetError for the third such
        step in a row.
        """
        total = torch.zeros((), dtype=torch.float64)
        for micro in batch.split(micro_tokens):
            loss = (loss_of(micro) * micro.weight).sum()
            loss.backward()
            self._gather()
            total += loss.detach().double().cpu()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        if not (torch.isfinite(norm) and torch.isfinite(total)):
            self.forget()
            self.lost += 1
            if self.lost == LOST:
                raise WhetError(
                    f"{LOST} steps in a row had a loss or a gradient that is not finite, the last after {self.done} good ones (loss {float(total)}, "
                    f"gradient {float(norm)}): lower the learning rate; the weights are as before these steps"
                )
            return Stepped(float(total), float(norm), lost=True)
        self.lost = 0
        for optimizer, rates in zip(self.optimizers, self.base_lr, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.lr_scale
            optimizer.step()
        self._spread()
        self.forget()
        self.done += 1
        return Stepped(float(total), float(norm))

    def _gather(self) -> None:
        """Gradients of weights that have copies are added to the copies'."""
        for weight, p in zip(self.weights, self.parameters, strict=True):
            if p is not weight and weight.grad is not None:
                p.grad = weight.grad.to(p.dtype) if p.grad is None else p.grad.add_(weight.grad)
                weight.grad = None

    @torch.no_grad()
    def _spread(self) -> None:
        for weight, p in zip(self.weights, self.parameters, strict=True):
            if p is not weight:
                weight.copy_(p)

    def fresh(self) -> None:
        """Optimizers as they were before the first step; the schedule goes on."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def state(self) -> State:
        """What is trained, the optimizers' moments, and where the schedule stands."""
        tensors = {f"weight/{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, optimizer in enumerate(self.optimizers):
            for j, moments in optimizer.state_dict()["state"].items():
                tensors |= {f"moment/{i}/{j}/{key}": value for key, value in moments.items()}
        return State(
            tensors, {"done": self.done, "lost": self.lost, "weights": len(self.parameters)}
        )

    def restore(self, state: State) -> None:
        """Raises ModelError where the state is another model's."""
        weights = [state.tensors.get(f"weight/{i}") for i in range(state.data["weights"])]
        if [p.shape for p in self.parameters] != [w.shape for w in weights if w is not None]:
            raise ModelError("the checkpoint's weights are not of this model's shapes")
        with torch.no_grad():
            for p, weight in zip(self.parameters, weights, strict=True):
                assert weight is not None
                p.copy_(weight)
        self._spread()
        for i, optimizer in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in state.tensors.items():
                if key.startswith(f"moment/{i}/"):
                    _, _, j, name = key.split("/")
                    moments.setdefault(int(j), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.done, self.lost = state.data["done"], state.data["lost"]

    def forget(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def _stepped(weight: nn.Parameter) -> nn.Parameter:
    """What the optimizers move: the weight, or its copy in float32."""
    narrow = weight.dtype in (torch.bfloat16, torch.float16)
    return nn.Parameter(weight.detach().float()) if narrow else weight


def _optimizers(
    named: list[tuple[str, nn.Parameter]], s: config.Optimizer
) -> list[torch.optim.Optimizer]:
    inner = [p for name, p in named if p.ndim == 2 and "embed" not in name and "head" not in name]
    matrices = inner if s.kind == "muon" else []
    taken = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in taken]
    decayed = [p for p in rest if p.ndim >= 2]
    plain = [p for p in rest if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": s.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    lr_rest = s.lr if s.kind == "adamw" or s.lr_rest is None else s.lr_rest
    fused = bool(named) and named[0][1].device.type in ("cuda", "cpu")
    found: list[torch.optim.Optimizer] = []
    if rest:  # adapters are matrices, all of them
        found.append(
            torch.optim.AdamW(
                [g for g in groups if g["params"]], lr=lr_rest, betas=s.betas, fused=fused
            )
        )
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=s.lr, weight_decay=s.weight_decay))
    return found

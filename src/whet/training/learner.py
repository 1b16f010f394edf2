"""A model that learns: log-probabilities of a pack, gradients of micro-batches, optimizer steps."""

import math
from collections.abc import Iterator
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

LOST = 3  # steps in a row without a finite loss and gradient, after which a run ends


class Trained(Protocol):
    """A model with weights to train: a policy, a critic."""

    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def policy_logprobs(
    policy: Policy, batch: Pack, sampling: Sampling, entropy_grad: bool = False
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """log pi of the chosen tokens [M], and the entropy at each [M].

    Both are of the distribution that `sampling` draws from: temperature, top-p and top-k included.
    """

    def shape(logits: Tensor, targets: Tensor) -> Tensor:
        return processed(logits, sampling.temperature, sampling.top_p, sampling.top_k, keep=targets)

    hidden = policy.packed(batch.tokens, batch.positions, batch.starts)
    if isinstance(policy, Transformer) and sampling.top_p >= 1.0 and sampling.top_k <= 0:
        head, temperature = policy.head.weight, sampling.temperature
        return linear_logprobs(hidden, head, batch.tokens, batch.chosen, temperature, entropy_grad)
    return chosen_logprobs(hidden, policy.logits, batch.tokens, batch.chosen, shape, entropy_grad)


@torch.no_grad()
def fixed_logprobs(
    policy: Policy, batch: Pack, sampling: Sampling, micro_tokens: int
) -> Float[Tensor, " m"]:
    """log pi of the chosen tokens [M] without gradient, `micro_tokens` tokens a forward pass."""
    micros = batch.split(micro_tokens)
    return torch.cat([policy_logprobs(policy, micro, sampling)[0] for micro in micros])


@dataclass(frozen=True, slots=True)
class Stepped:
    """One optimizer step: its loss, the norm of its gradient before clipping, its learning rate.

    A step whose loss or gradient is not finite is `lost`: the weights are as before it.
    """

    loss: float
    grad_norm: float
    lr: float = 0.0
    lost: bool = False

    @property
    def figures(self) -> dict[str, float]:
        """Loss and norm, as they are logged."""
        return {"lost": 1.0} if self.lost else {"loss": self.loss, "grad_norm": self.grad_norm}


Model = TypeVar("Model", bound=Trained)


class Learner(Generic[Model]):
    """A model and its optimizers.

    An optimizer step is one `backward` for each micro-batch, then `step`. Of weights in bfloat16 or
    float16, where most updates would round to nothing, the optimizers have copies in float32:
    gradients are summed in the copies, and after each step the weights are the rounded copies
    (arXiv:1710.03740, section 3.1).
    """

    def __init__(self, model: Model, settings: config.Optimizer, steps: int) -> None:
        self.model = model
        self.settings = settings
        self.steps = max(steps, 1)
        self.done = self.lost = 0  # steps made, and steps lost in a row
        self.loss = 0.0  # of the micro-batches since the last step
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in named]
        self.parameters = [_optimized(p) for p in self.weights]
        self.optimizers = _optimizers(
            [(name, p) for (name, _), p in zip(named, self.parameters, strict=True)], settings
        )
        self.base_lr = [[group["lr"] for group in o.param_groups] for o in self.optimizers]

    @property
    def lr_scale(self) -> float:
        """The schedule's factor on the learning rate at the next step."""
        s, at = self.settings, self.done
        warm = min(1.0, (at + 1) / s.warmup) if s.warmup else 1.0
        left = 1 - min(1.0, max(0, at - s.warmup) / max(1, self.steps - s.warmup))
        shape = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
        return warm * shape[s.schedule]

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Adds the gradient of a micro-batch's weighted loss to that of the next step."""
        loss.backward()
        self._gather()
        self.loss += float(loss.detach().double())

    def step(self) -> Stepped:
        """One optimizer step on the micro-batches since the last one.

        Where loss or gradient is not finite, the weights, the moments and the schedule stay as they
        were. Raises WhetError for the third such step in a row.
        """
        loss, self.loss = self.loss, 0.0
        lr = self.settings.lr * self.lr_scale
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self.forget()
            self.lost += 1
            if self.lost == LOST:
                raise WhetError(
                    f"{LOST} steps in a row had a loss or a gradient that is not finite, the last "
                    f"after {self.done} good ones (loss {loss}, gradient {norm}): lower the "
                    "learning rate; the weights are as before these steps"
                )
            return Stepped(loss, norm, lr, lost=True)
        self.lost = 0
        for optimizer, rates in zip(self.optimizers, self.base_lr, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self.lr_scale
            optimizer.step()
        self._spread()
        self.forget()
        self.done += 1
        return Stepped(loss, norm, lr)

    def _gather(self) -> None:
        """Adds the gradients of weights in half precision to those of their copies."""
        for weight, p in zip(self.weights, self.parameters, strict=True):
            if p is not weight and weight.grad is not None:
                p.grad = weight.grad.to(p.dtype) if p.grad is None else p.grad.add_(weight.grad)
                weight.grad = None

    @torch.no_grad()
    def _spread(self) -> None:
        """Rounds the copies to the weights in half precision."""
        for weight, p in zip(self.weights, self.parameters, strict=True):
            if p is not weight:
                weight.copy_(p)

    def fresh(self) -> None:
        """Forgets the optimizers' moments; the schedule goes on."""
        for optimizer in self.optimizers:
            optimizer.state.clear()

    def state(self) -> State:
        """The trained weights, the optimizers' moments, and the steps made."""
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
        """Drops the gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)


def _optimized(weight: nn.Parameter) -> nn.Parameter:
    """The parameter that the optimizers move: the weight, or its copy in float32."""
    narrow = weight.dtype in (torch.bfloat16, torch.float16)
    return nn.Parameter(weight.detach().float()) if narrow else weight


def _optimizers(
    named: list[tuple[str, nn.Parameter]], s: config.Optimizer
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between embedding and head where it is asked for; AdamW for the rest."""
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
    optimizers: list[torch.optim.Optimizer] = []
    if rest:  # adapters have matrices only
        groups = [g for g in groups if g["params"]]
        optimizers.append(torch.optim.AdamW(groups, lr=lr_rest, betas=s.betas, fused=fused))
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=s.lr, weight_decay=s.weight_decay))
    return optimizers

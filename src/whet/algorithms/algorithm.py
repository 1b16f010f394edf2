"""One row of the table of algorithms: its cells, what they may hold, and the loss they make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from whet.algorithms.advantages import ADVANTAGES
from whet.algorithms.batch import PolicyBatch
from whet.algorithms.kl import KL
from whet.algorithms.losses import (
    clip_acts,
    clipped,
    log_ratio,
    policy_gradient,
    proximal,
    sequence_log_ratio,
    weighted,
)
from whet.errors import RecipeError, did_you_mean

Aggregation = Literal["sequence_mean", "token_mean", "sum_over_limit", "sum"]
Cells = TypeVar("Cells", "Algorithm", "Critic")


@dataclass(frozen=True, slots=True)
class Critic:
    """A second network that predicts returns, and how advantages come from its values (GAE)."""

    lam: float = 0.95  # of the policy's advantages
    lam_critic: float = 0.95  # of the returns that the critic learns
    # alpha of a lambda that grows with the answer, 1 - 1 / (alpha length), in place of lam; 0: lam
    stretch: float = 0.0
    value_clip: float = 0.2  # 0: none
    updates: int = 4  # mini-batches of a rollout
    bootstrap: bool = (
        True  # a cut-off answer's value goes on beyond its last token; false: it ends there
    )


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row. A recipe may override any cell but the name and the source."""

    name: str
    source: str
    advantage: str  # a key of ADVANTAGES
    ratio: Literal["token", "sequence", "weight", "none"] = (
        "token"  # weight: bounded, no gradient; none: plain policy gradient
    )
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "sequence_mean"
    kl: str = "none"  # a key of KL
    kl_in: Literal["loss", "reward"] = "loss"
    beta: float = 0.0  # of the KL
    gamma: float = 1.0  # discount of what tokens earn: the KL in the reward, and GAE
    critic: Critic | None = None
    token_reward: bool = False  # tokens weighted by a learned reward model of their own
    warmup: int = (
        0  # rollouts that train the critic or that reward model alone, before the policy moves
    )
    normalise: bool = False  # whiten the advantages over all tokens of the rollout
    entropy: float = 0.0  # coefficient of the entropy bonus
    clone: float = 0.0  # coefficient of the log-likelihood of right answers
    tau: float = 0.0  # of the squared log-ratio of whole answers
    correction: Literal["none", "token", "sequence"] = (
        "none"  # of a sampler that differs from the trainer
    )
    cap: float = 2.0  # of the correction
    sampling: Literal["all", "dynamic", "prioritised"] = "all"
    updates: int = 1  # optimizer steps a rollout
    fresh_optimizer: bool = False  # forget the optimizer's moments with every rollout

    def advantages(self, rewards: Sequence[Sequence[float]]) -> list[Float[Tensor, " g"]]:
        """One number for each answer, per group, in float64."""
        return ADVANTAGES[self.advantage]([torch.tensor(r, dtype=torch.float64) for r in rewards])

    def weights(self, lengths: Sequence[int], limit: int) -> list[float]:
        """The weight of each token of a sequence in the loss, for the `lengths` of ALL sequences of
        one update.

        sequence_mean   1 / (S |o_i|)     mean over tokens, then over sequences          GRPO,
        arXiv:2402.03300, eq. 3
        token_mean      1 / sum_j |o_j|   every token alike                              DAPO,
        arXiv:2503.14476, eq. 8
        sum_over_limit  1 / (S limit)     a constant, so length is not rewarded           Dr. GRPO,
        arXiv:2503.20783, sec. 3.2
        sum             1 / S             the log-probability of the whole answer         RLOO,
        arXiv:2402.14740
        """
        count, total = len(lengths), sum(lengths)
        match self.aggregation:
            case "sequence_mean":
                return [1 / (count * max(n, 1)) for n in lengths]
            case "token_mean":
                return [1 / max(total, 1)] * count
            case "sum_over_limit":
                return [1 / (count * limit)] * count
            case "sum":
                return [1 / count] * count

    def clones(self, lengths: Sequence[int], right: Sequence[bool], limit: int) -> list[float]:
        """`clone` / (tokens of right answers) for each token of a right answer, as a multiple of
        its weight. VAPO, arXiv:2504.05118, sec. 4.3.
        """
        tokens = sum(n for n, r in zip(lengths, right, strict=True) if r)
        weights = self.weights(lengths, limit)
        return [
            self.clone / max(tokens, 1) / w if r and self.clone else 0.0
            for r, w in zip(right, weights, strict=True)
        ]

    @property
    def has_kl(self) -> bool:
        return self.kl != "none" and self.beta != 0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss itself reads the reference's log-probabilities."""
        return self.has_kl and self.kl_in == "loss"

    @property
    def rewards_kl(self) -> bool:
        return self.has_kl and self.kl_in == "reward"

    @property
    def only_advantage(self) -> bool:
        """Whether a sample with advantage 0 adds nothing to the gradient, so that it need not reach
        the model.
        """
        return not (self.needs_reference or self.entropy or self.clone or self.tau)

    @property
    def per_token(self) -> bool:
        """Whether the tokens of an answer have advantages of their own."""
        return self.rewards_kl or self.critic is not None or self.token_reward

    def loss(
        self,
        logp: Float[Tensor, " m"],
        entropy: Float[Tensor, " m"],
        batch: PolicyBatch,
        logp_ref: Tensor | None = None,
    ) -> Float[Tensor, " m"]:
        """Per token [M]; the batch's weights, and nothing else, reduce it. Raises ValueError where
        a reference is missing.
        """
        if self.ratio == "none":
            loss = policy_gradient(logp, batch.advantage)
        elif self.ratio == "weight":
            loss = weighted(
                logp, self.log_ratio(logp, batch), batch.advantage, self.clip_low, self.clip_high
            )
        else:
            loss = clipped(
                self.log_ratio(logp, batch), batch.advantage, self.clip_low, self.clip_high
            )
        if self.needs_reference:
            if logp_ref is None:
                raise ValueError(
                    f"{self.name}: beta = {self.beta} needs the reference's log-probabilities"
                )
            loss = loss + self.beta * KL[self.kl](logp, logp_ref)
        if self.tau:
            loss = loss + self.tau * proximal(logp, batch.logp_old, batch.sequence)
        if self.clone:
            loss = loss - batch.clone * logp
        return loss - self.entropy * entropy if self.entropy else loss

    def log_ratio(self, logp: Float[Tensor, " m"], batch: PolicyBatch) -> Float[Tensor, " m"]:
        if self.ratio == "sequence":
            return sequence_log_ratio(logp, batch.logp_old, batch.sequence)
        return log_ratio(logp, batch.logp_old)

    def clipped(self, logp: Tensor, batch: PolicyBatch) -> Tensor:
        """True [M] where the clip removes the gradient, or bounds the weight; never without a
        ratio.
        """
        if self.ratio == "none":
            return torch.zeros_like(logp, dtype=torch.bool)
        rho = self.log_ratio(logp, batch)
        if self.ratio == "weight":
            return (rho.exp() > 1 + self.clip_high) | (rho.exp() < 1 - self.clip_low)
        return clip_acts(rho, batch.advantage, self.clip_low, self.clip_high)

    def override(self, cells: Mapping[str, Any]) -> "Algorithm":
        """This row with some cells changed. Raises RecipeError for an unknown cell or value."""
        changed = dict(cells)
        if isinstance(inner := changed.get("critic"), Mapping):
            changed["critic"] = _changed(self.name, self.critic or Critic(), dict(inner), "critic.")  # pyright: ignore[reportUnknownArgumentType]
        elif changed.get("critic") == "none":
            changed["critic"] = None
        return _changed(self.name, self, changed).validated()

    def validated(self) -> "Algorithm":
        _check(self.name, self, CHOICES)
        if self.critic is not None:
            _check(self.name, self.critic, {}, "critic.")
        problem = _contradiction(self)
        if problem:
            raise RecipeError(f"algorithm {self.name}: {problem}")
        return self


CHOICES: dict[str, tuple[str, ...]] = {
    "advantage": tuple(ADVANTAGES),
    "ratio": ("token", "sequence", "weight", "none"),
    "aggregation": ("sequence_mean", "token_mean", "sum_over_limit", "sum"),
    "kl": ("none", *KL),
    "kl_in": ("loss", "reward"),
    "correction": ("none", "token", "sequence"),
    "sampling": ("all", "dynamic", "prioritised"),
}
COUNTS = {"updates": 1, "warmup": 0}  # the least each may be
SHARES = ("gamma", "lam", "lam_critic")


def _changed(row: str, cells: Cells, new: dict[str, Any], prefix: str = "") -> Cells:
    known = {f.name: f for f in fields(cells) if f.name not in ("name", "source")}
    for key in new:
        if key not in known:
            raise RecipeError(
                f"algorithm {row}: unknown key {prefix + key!r}{did_you_mean(key, known)}"
            )
    return replace(cells, **new)


def _check(
    row: str, cells: Algorithm | Critic, choices: Mapping[str, tuple[str, ...]], prefix: str = ""
) -> None:
    """Every cell holds what its kind may hold. Raises RecipeError."""
    for cell in (f.name for f in fields(cells) if f.name not in ("name", "source")):
        value = getattr(cells, cell)
        said = f"algorithm {row}: {prefix}{cell} = {value!r}"
        if cell in choices:
            if value not in choices[cell]:
                raise RecipeError(said + did_you_mean(str(value), choices[cell]))
        elif cell == "critic":
            if value is not None and not isinstance(value, Critic):
                raise RecipeError(f"{said}; it must be a table such as {{ lam = 0.95 }}, or none")
        elif cell in ("token_reward", "normalise", "fresh_optimizer", "bootstrap"):
            if not isinstance(value, bool):
                raise RecipeError(f"{said}; it must be true or false")
        elif cell in COUNTS:
            if type(value) is not int or value < COUNTS[cell]:
                raise RecipeError(f"{said}; it must be a whole number, {COUNTS[cell]} or more")
        elif (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not 0 <= value < float("inf")
        ):
            raise RecipeError(f"{said}; it must be a number, 0 or more")
        elif cell in SHARES and value > 1:
            raise RecipeError(f"{said}; it must be a number from 0 to 1")


def _contradiction(row: Algorithm) -> str:
    """Cells that cannot hold together, in words; empty where they do."""
    if row.beta and row.kl == "none":
        return f"beta = {row.beta} without kl; name one: {', '.join(KL)}"
    if row.needs_reference and row.kl == "k1":
        return "k1 in the loss has expected gradient 0; use kl = 'k2', or kl_in = 'reward'"
    if row.critic is not None and row.token_reward:
        return "critic and token_reward exclude each other"
    if row.critic is not None and row.advantage not in ("raw", "none"):
        return f"a critic is the baseline, so advantage = {row.advantage!r} would count a second one; use 'raw'"
    if row.warmup and row.critic is None and not row.token_reward:
        return f"warmup = {row.warmup} trains a critic or a token-level reward model, and there is none"
    if row.token_reward and row.advantage != "cloned":
        return "token_reward weighs right and wrong answers apart; it needs advantage = 'cloned'"
    if row.advantage == "none" and not row.rewards_kl:
        return "without a reward (advantage = 'none') something must teach: give kl, beta and kl_in = 'reward'"
    if row.correction != "none" and row.cap < 1:
        return (
            f"cap = {row.cap} would bound the correction below 1, where sampler and trainer agree"
        )
    if row.ratio in ("none", "weight") and row.tau and row.updates == 1:
        return "tau acts only once the policy has moved: it needs updates above 1"
    return ""

"""One row of the table of algorithms, as data: its cells, and which values may stand together.

`objective` computes with a row; nothing here needs torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from whet.errors import RecipeError, did_you_mean
from whet.options import Options

AdvantageName = Literal[
    "raw", "none", "cloned", "centred", "zscored", "leave_one_out", "batch_centred"
]
KLName = Literal["none", "k1", "k2", "k3"]
Coefficient = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Critic(BaseModel):
    """A second network that predicts returns, and how advantages come from its values (GAE)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    lam: Share = Field(
        default=0.95, description="lambda of the policy's advantages (GAE, arXiv:1506.02438)"
    )
    lam_critic: Share = Field(
        default=0.95, description="lambda of the returns that the critic learns"
    )
    stretch: Coefficient = Field(
        default=0.0,
        description="alpha of lambda = 1 - 1 / (alpha length), in place of lam; 0: lam "
        "(VAPO, arXiv:2504.05118, sec. 4.2)",
    )
    value_clip: Coefficient = Field(
        default=0.2,
        description="how far a value may move in one rollout before its gradient stops; 0: any "
        "distance (arXiv:2005.12729, sec. 3)",
    )
    updates: int = Field(default=4, ge=1, description="the critic's optimizer steps a rollout")
    bootstrap: bool = Field(
        default=True,
        description="true: a cut-off answer goes on at the critic's value; false: it ends there",
    )


def _critic(value: object) -> object:
    """A critic's table, or `none`, which takes the critic of a row away."""
    if value is None or value == "none":
        return None
    if not isinstance(value, Critic | Mapping):
        raise ValueError("it must be a table such as { lam = 0.95 }, or none")
    return value  # pyright: ignore[reportUnknownVariableType]


class Algorithm(Options):
    """One row. A recipe may override any cell but the name and the source."""

    owner: ClassVar[str] = "algorithm {name}"

    name: str = Field(description="the row's name")
    source: str = Field(description="where the row comes from")
    advantage: AdvantageName = Field(
        description="where an answer's advantage comes from: zscored, centred or leave_one_out "
        "within its group, batch_centred within the rollout, cloned (right answers 1), raw (the "
        "reward), none (0)"
    )
    ratio: Literal["token", "sequence", "weight", "none"] = Field(
        default="token",
        description="importance ratio: token (PPO, arXiv:1707.06347); sequence, the geometric mean "
        "of an answer's (GSPO, arXiv:2507.18071); weight, bounded and without gradient (CISPO, "
        "arXiv:2506.13585); none, plain policy gradient",
    )
    clip_low: Coefficient = Field(
        default=0.2, description="the ratio is clipped to at least 1 - clip_low"
    )
    clip_high: Coefficient = Field(
        default=0.2, description="and to at most 1 + clip_high (DAPO, arXiv:2503.14476, eq. 8)"
    )
    aggregation: Literal["sequence_mean", "token_mean", "sum_over_limit", "sum"] = Field(
        default="sequence_mean",
        description="weight of a token: sequence_mean 1/(S length) (GRPO, arXiv:2402.03300); "
        "token_mean 1/all tokens (DAPO, arXiv:2503.14476); sum_over_limit 1/(S limit) (Dr. GRPO, "
        "arXiv:2503.20783); sum 1/S",
    )
    kl: KLName = Field(
        default="none", description="estimator of the KL to the reference (Schulman 2020)"
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss",
        description="loss: a term of the loss; reward: paid token by token, without gradient",
    )
    beta: Coefficient = Field(default=0.0, description="coefficient of the KL")
    gamma: Share = Field(
        default=1.0, description="discount of what tokens earn: the KL in the reward, and GAE"
    )
    critic: Annotated[Critic | None, BeforeValidator(_critic)] = Field(
        default=None, description="a table of the critic's cells, or none"
    )
    token_reward: bool = Field(
        default=False,
        description="weigh tokens by a token-level reward model (OREAL, arXiv:2502.06781)",
    )
    warmup: int = Field(
        default=0,
        ge=0,
        description="rollouts that train the critic or that reward model alone, before the policy",
    )
    normalise: bool = Field(
        default=False, description="whiten the advantages over all tokens of the rollout"
    )
    entropy: Coefficient = Field(default=0.0, description="coefficient of the entropy bonus")
    clone: Coefficient = Field(
        default=0.0,
        description="coefficient of the log-likelihood of right answers (VAPO, arXiv:2504.05118, "
        "sec. 4.3)",
    )
    tau: Coefficient = Field(
        default=0.0,
        description="coefficient of the squared log-ratio of whole answers (Kimi k1.5, "
        "arXiv:2501.12599, eq. 3)",
    )
    correction: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="of a sampler that differs from the trainer: token weighs by the ratio, at "
        "most cap; sequence leaves out answers whose mean ratio is beyond cap",
    )
    cap: Coefficient = Field(default=2.0, description="bound of the correction")
    sampling: Literal["all", "dynamic", "prioritised"] = Field(
        default="all",
        description="groups: all; dynamic draws again until enough groups have signal (DAPO, "
        "arXiv:2503.14476); prioritised takes prompts by 1 - success (Kimi k1.5, arXiv:2501.12599)",
    )
    updates: int = Field(default=1, ge=1, description="optimizer steps a rollout")
    fresh_optimizer: bool = Field(
        default=False, description="forget the optimizer's moments with every rollout"
    )

    @property
    def has_kl(self) -> bool:
        """Whether a KL to a reference takes part."""
        return self.kl != "none" and self.beta != 0

    @property
    def needs_reference(self) -> bool:
        """Whether the loss itself reads the reference's log-probabilities."""
        return self.has_kl and self.kl_in == "loss"

    @property
    def rewards_kl(self) -> bool:
        """Whether tokens pay for the KL in their reward."""
        return self.has_kl and self.kl_in == "reward"

    @property
    def trains_critic(self) -> bool:
        """Whether a critic, or a token-level reward model, is trained beside the policy."""
        return self.critic is not None or self.token_reward

    @property
    def only_advantage(self) -> bool:
        """Whether a sample with advantage 0 has no gradient, so that the model need not read it."""
        return not (self.needs_reference or self.entropy or self.clone or self.tau)

    @property
    def per_token(self) -> bool:
        """Whether the tokens of an answer have advantages of their own."""
        return self.rewards_kl or self.trains_critic

    def override(self, cells: Mapping[str, Any]) -> Self:
        """This row with some cells changed. Raises RecipeError for an unknown cell or value."""
        row = self.model_dump()
        for cell in ("name", "source"):
            if cell in cells:
                known = did_you_mean(cell, row.keys() - {"name", "source"})
                raise RecipeError(f"algorithm {self.name}: unknown option {cell!r}{known}")
        critic = cells.get("critic")
        if isinstance(critic, Mapping):
            cells = {**cells, "critic": {**(self.critic or Critic()).model_dump(), **critic}}
        return type(self)(**{**row, **cells})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if contradiction := _contradiction(self):
            raise ValueError(contradiction)
        return self


def _contradiction(row: Algorithm) -> str:
    """Cells that cannot hold together, in words; empty where all do."""
    if row.beta and row.kl == "none":
        return f"beta = {row.beta} without kl; name one: k1, k2, k3"
    if row.needs_reference and row.kl == "k1":
        return "k1 in the loss has expected gradient 0; use kl = 'k2', or kl_in = 'reward'"
    if row.critic is not None and row.token_reward:
        return "critic and token_reward exclude each other"
    if row.critic is not None and row.advantage not in ("raw", "none"):
        return (
            f"a critic is the baseline, so advantage = {row.advantage!r} would count a second one; "
            "use 'raw'"
        )
    if row.warmup and not row.trains_critic:
        return (
            f"warmup = {row.warmup} trains a critic or a token-level reward model, and there is "
            "none"
        )
    if row.token_reward and row.advantage != "cloned":
        return "token_reward weighs right and wrong answers apart; it needs advantage = 'cloned'"
    if row.advantage == "none" and not row.rewards_kl:
        return (
            "without a reward (advantage = 'none') something must teach: give kl, beta and "
            "kl_in = 'reward'"
        )
    if row.correction != "none" and row.cap < 1:
        return (
            f"cap = {row.cap} would bound the correction below 1, where sampler and trainer agree"
        )
    if row.ratio in ("none", "weight") and row.tau and row.updates == 1:
        return "tau acts only once the policy has moved: it needs updates above 1"
    return ""

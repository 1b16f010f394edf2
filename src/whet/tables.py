"""What the tables of a recipe are made of: bounds of numbers, and how weights are trained."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from whet.errors import did_you_mean

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a decoder's layer
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Optimizer(Table):
    """muon: matrices by Muon, all else by AdamW at `lr_rest`; adamw: everything by AdamW."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: Rate = 1e-5
    lr_rest: Rate | None = None  # of what Muon leaves to AdamW; lr where not given
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[int, Field(ge=0)] = 0  # steps
    max_grad_norm: Rate = 1.0


class Critic(Optimizer):
    """The optimizer of a critic (or token-level reward model), and what it starts from where that is not the policy."""

    start: str | None = None  # a reward_model stage, a directory or a Hub id


class Lora(Table):
    """Adapters in place of full training (arXiv:2106.09685); `merge`: STAGE/model is the merged model, else the adapter itself."""

    rank: Positive = 16
    alpha: Rate = 32
    targets: Annotated[list[str], Field(min_length=1)] = list(PROJECTIONS)
    merge: bool = True

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.targets:
            if name not in PROJECTIONS:
                raise ValueError(f"targets has no {name!r}{did_you_mean(name, PROJECTIONS)}")
        return self

    def adapts_like(self, other: "Lora") -> bool:
        """Whether both describe adapters of the same form, of which one stage could train on what another left."""
        one, two = ((t.rank, t.alpha, set(t.targets)) for t in (self, other))
        return one == two

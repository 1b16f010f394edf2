"""The tables of a recipe that are no stage."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from whet.config.thinking import Switch, Thinking
from whet.errors import did_you_mean

PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)  # of a decoder's layer
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _temperature(value: float) -> float:
    """Beyond these bounds logits are no numbers, or all alike."""
    if value and not 1e-4 <= value <= 1e4:
        raise ValueError("must be from 0.0001 to 10000")
    return value


Temperature = Annotated[float, AfterValidator(_temperature)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shape(Table):
    """A decoder made from nothing (its vocabulary is the task's alphabet, a character a token)."""

    family: Literal["llama", "qwen2", "qwen3"] = "qwen3"
    hidden: Positive = 96
    layers: Positive = 2
    heads: Positive = 4
    kv_heads: Positive = 4
    ffn: Positive = 224
    max_positions: Positive = 512

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({self.heads}), and heads of kv_heads ({self.kv_heads})"
            )
        return self


class Model(Table):
    """`path`: a Hugging Face directory or Hub id; without one, `shape` is made from nothing.

    `recompute`: in training a layer's activations are not kept but made again in the backward pass.
    `threads` on a CPU; 0: one for models of up to 2 million parameters, whose operations are too
    small to share, else all.
    """

    path: str | None = None
    shape: Shape = Shape()
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    recompute: bool = False
    threads: Annotated[int, Field(ge=0, le=4096)] = 0


class Task(BaseModel):
    """`name` as `whet tasks` lists it; every other key is an option of that task, checked by it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Ask(Table):
    """How a problem becomes a prompt: an optional system message, and the template's thinking
    switch.
    """

    system: str | None = None
    thinking: Thinking = None


class Reward(BaseModel):
    """One part of the reward: `task` (the task's own verifier), a built-in, or your own
    `module:function`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "task"
    weight: float = 1.0

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Evaluation(Table):
    """How models are measured, on the test split."""

    problems: Positive = 1000
    samples: Positive = 1
    temperature: Annotated[Temperature, Field(ge=0)] = 1.0  # 0: the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    max_tokens: Positive = 128
    seed: Seed = 0
    thinking: Switch = None


class Optimizer(Table):
    """muon: matrices by Muon, all else by AdamW at `lr_rest`; adamw: everything by AdamW."""

    kind: Literal["adamw", "muon"] = "adamw"
    lr: Rate = 1e-5
    lr_rest: Rate | None = None  # of what Muon leaves to AdamW; lr where not given
    betas: tuple[Share, Share] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Count = 0  # steps
    max_grad_norm: Rate = 1.0

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.kind == "adamw" and self.lr_rest is not None:
            raise ValueError(
                "lr_rest is of what Muon leaves over, and kind = 'adamw' would not read it; drop it"
            )
        return self


class Critic(Optimizer):
    """The optimizer of a critic (or token-level reward model), and what it starts from where that
    is not the policy.
    """

    start: str | None = None  # a reward_model stage, a directory or a Hub id


class Lora(Table):
    """Adapters in place of full training (arXiv:2106.09685); `merge`: STAGE/model is the merged
    model, else the adapter itself.
    """

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
        """Whether both describe adapters of the same form, of which one stage could train on what
        another left.
        """
        one, two = ((t.rank, t.alpha, set(t.targets)) for t in (self, other))
        return one == two


class Save(Table):
    """What is kept while a stage runs, so that a run can go on (`--resume`) where it was."""

    every: Positive = 50  # steps
    last: Positive = 2  # checkpoints of a stage


class Gate(Table):
    """What a model must reach before the pipeline goes on: accuracy of the answers given in one
    mode.
    """

    mode: str
    accuracy: Share
    above: str | None = None  # another mode whose accuracy must be lower
    every: Positive = 100  # steps between measurements
    samples: Positive = 512
    max_tokens: Positive = 64

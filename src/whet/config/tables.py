"""The tables of a recipe that are not stages."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from whet.config.thinking import Switch, Thinking
from whet.errors import did_you_mean

# the linear layers of a decoder's layer
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _temperature(value: float) -> float:
    """Beyond these bounds logits are no numbers, or all alike."""
    if value and not 1e-4 <= value <= 1e4:
        raise ValueError("it must be from 0.0001 to 10000")
    return value


Temperature = Annotated[float, AfterValidator(_temperature)]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shape(Table):
    """A decoder made from nothing. Its vocabulary is the task's alphabet, a character a token."""

    family: Literal["llama", "qwen2", "qwen3"] = Field(default="qwen3", description="architecture")
    hidden: Positive = Field(default=96, description="width of the residual stream")
    layers: Positive = Field(default=2, description="decoder layers")
    heads: Positive = Field(default=4, description="query heads")
    kv_heads: Positive = Field(default=4, description="key and value heads; fewer than heads: GQA")
    ffn: Positive = Field(default=224, description="width of the feed-forward layers")
    max_positions: Positive = Field(default=512, description="longest sequence, in tokens")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of 2 x heads ({self.heads}), "
                f"and heads of kv_heads ({self.kv_heads})"
            )
        return self


class Model(Table):
    """The model that the first stage starts from."""

    path: str | None = Field(
        default=None,
        description="Hugging Face directory or Hub id; without one, shape is made from nothing",
    )
    shape: Shape = Field(default=Shape(), description="size of a model made from nothing")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the weights"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where models run")
    recompute: bool = Field(
        default=False,
        description="in training, compute a layer's activations again in the backward pass "
        "rather than keep them: less memory, more time",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="threads on a CPU; 0: one for models of up to 2 million parameters, "
        "whose operations are too small to share, else all",
    )


class Task(BaseModel):
    """The problems. Every key but the name is an option of that task, which checks it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(description="a task's name, as `whet tasks` lists it")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Ask(Table):
    """How a problem becomes a prompt."""

    system: str | None = Field(default=None, description="system message before each problem")
    thinking: Thinking = Field(
        default=None,
        description="the chat template's thinking switch: true, false, "
        "or the share of the problems that are asked with it on",
    )


class Reward(BaseModel):
    """One part of the reward. Every further key is an option of that reward, which checks it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = Field(
        default="task",
        description="task (the task's own verifier), a built-in reward as `whet reward list` "
        "lists it, or your own module:function",
    )
    weight: float = Field(default=1.0, description="factor of the part in the sum; 0: logged only")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Evaluation(Table):
    """How models are measured, on the test split."""

    problems: Positive = Field(
        default=1000, description="test problems; fewer where there are fewer"
    )
    samples: Positive = Field(default=1, description="answers to each problem")
    temperature: Temperature = Field(default=1.0, ge=0, description="0: always the likeliest token")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="sample from the likeliest tokens of this total probability",
    )
    top_k: Count = Field(default=0, description="sample from so many likeliest tokens; 0: from all")
    max_tokens: Positive = Field(default=128, description="longest answer")
    seed: Seed = Field(default=0, description="of the problems and of sampling")
    thinking: Switch = Field(
        default=None,
        description="the chat template's switch; where not set, as prompts are asked",
    )


class Optimizer(Table):
    """How weights are updated."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw: AdamW for all weights; muon: Muon for matrices, AdamW for the rest",
    )
    lr: Rate = Field(default=1e-5, description="learning rate")
    lr_rest: Rate | None = Field(
        default=None,
        description="learning rate of the weights that Muon leaves to AdamW; default: lr",
    )
    betas: tuple[Share, Share] = Field(default=(0.9, 0.95), description="AdamW's decay rates")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="learning rate over the stage's steps"
    )
    warmup: Count = Field(default=0, description="steps in which the learning rate rises to lr")
    max_grad_norm: Rate = Field(default=1.0, description="norm to which gradients are clipped")

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.kind == "adamw" and self.lr_rest is not None:
            raise ValueError(
                "lr_rest is for the weights that Muon leaves to AdamW, "
                "and kind = 'adamw' would not read it; drop it"
            )
        return self


class Critic(Optimizer):
    """The optimizer of a critic or token-level reward model, and the model it starts from."""

    start: str | None = Field(
        default=None,
        description="model: a reward_model stage, a directory or a Hub id; default: the policy",
    )


class Lora(Table):
    """Adapters in place of full training (LoRA, arXiv:2106.09685)."""

    rank: Positive = Field(default=16, description="rank of the adapters")
    alpha: Rate = Field(default=32, description="scale: adapters count alpha / rank times")
    targets: list[str] = Field(
        default=list(PROJECTIONS), min_length=1, description="linear layers that get an adapter"
    )
    merge: bool = Field(
        default=True, description="true: STAGE/model is the merged model; false: the adapter itself"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.targets:
            if name not in PROJECTIONS:
                raise ValueError(f"targets has no {name!r}{did_you_mean(name, PROJECTIONS)}")
        return self

    def adapts_like(self, other: "Lora") -> bool:
        """Whether both describe adapters of one form, so that a stage can go on with another's."""
        one, two = ((t.rank, t.alpha, set(t.targets)) for t in (self, other))
        return one == two


class Save(Table):
    """Checkpoints within a stage, from which `--resume` goes on."""

    every: Positive = Field(default=50, description="steps between checkpoints")
    last: Positive = Field(default=2, description="checkpoints of a stage that are kept")


class Gate(Table):
    """What the model must reach before the pipeline goes on: an accuracy in one mode."""

    mode: str = Field(description="mode of answering whose accuracy is measured")
    accuracy: Share = Field(description="accuracy to reach")
    above: str | None = Field(
        default=None, description="another mode, whose accuracy must be lower"
    )
    every: Positive = Field(default=100, description="steps between measurements")
    samples: Positive = Field(default=512, description="answers a measurement")
    max_tokens: Positive = Field(default=64, description="longest answer")

"""The stages of a recipe, each kind with its own keys."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from whet.config.tables import (
    NAME,
    Count,
    Critic,
    Evaluation,
    Gate,
    Lora,
    Optimizer,
    Positive,
    Rate,
    Reward,
    Shape,
    Share,
    Table,
    Temperature,
)


class Stage(Table):
    name: Annotated[str, Field(pattern=NAME)]
    start: str = "previous"  # previous | new | a stage's name | a directory or Hub id


class Trained(Stage):
    optimizer: Optimizer = Optimizer()
    micro_tokens: Positive = 4096  # tokens a forward pass
    lora: Lora | None = None


class Makes(Stage):
    """Leaves a policy behind, which is measured."""

    evaluate: bool = True


class Asks(Stage):
    only: str | None = None  # the part of a mix whose problems it takes; all where not given


class Draws(Asks):
    """Samples and scores; with a reward of its own, or the recipe's where none is given."""

    reward: list[Reward] = []
    temperature: Annotated[Temperature, Field(gt=0)] = 1.0
    max_tokens: Positive = 128


class SFT(Trained, Makes, Asks):
    kind: Literal["sft"]
    shape: Shape | None = None  # a model of its own, made from nothing
    data: str | dict[str, Share] = (
        "corpus"  # corpus (the task's) | a reject stage's name | the share of each
    )
    mix: dict[str, Share] = {}  # share of each mode in the corpus
    steps: Positive
    batch: Positive = 16
    gate: Gate | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shape is not None and self.start not in ("previous", "new"):
            raise ValueError(
                f"shape makes a new model, so start = {self.start!r} cannot be honoured; drop one"
            )
        if self.lora is not None and (self.shape is not None or self.start == "new"):
            raise ValueError(
                "lora adapts a model that has been trained, and this stage makes a new one; drop one"
            )
        if not sum(self.shares.values()) > 0:
            raise ValueError("data holds no share above 0")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source of data."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(self.data)


class RL(Trained, Makes, Draws):
    kind: Literal["rl"]
    algorithm: str = "dr_grpo"
    override: dict[str, Any] = {}  # cells of the algorithm's row
    # what a KL holds the policy to, or the teacher: start | a stage | a directory or Hub id
    reference: str = "start"
    critic: Critic | None = None  # the policy's settings where not given
    pool: Positive | None = (
        None  # prompts chosen among, where the row prioritises; where not given all, at most 4096
    )
    steps: Positive
    prompts: Positive = 32
    samples: Positive = 8
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    ahead: Literal[0, 1] = (
        # steps that sampling runs ahead of the updates: the next answers are drawn while these are
        # scored
        0
    )
    draws: Positive = 3  # most rollouts a step where the algorithm samples dynamically
    max_errors: Share = 0.2  # of a step's scores, above which the run stops
    probe: Count = 8  # test problems answered again and again, to be looked at; 0: none
    probe_every: Positive = 10  # steps


class Reject(Draws):
    """Draws samples and keeps the verified ones, as data for a later sft stage."""

    kind: Literal["reject"]
    problems: Positive
    samples: Positive = 1
    per_prompt: Positive = 1
    choose: Literal["first", "shortest"] = "first"


class Rank(Draws):
    """Draws samples and ranks them, as data for a later reward_model or dpo stage.

    by task: its rule, a labeller's noise included; reward: the reward's value; length: each
    problem's shortest right answer before its wrong answers that are longer and its right ones of
    at least `longer` times the length (Kimi k1.5, arXiv:2501.12599, sec. 2.4).
    """

    kind: Literal["rank"]
    problems: Positive
    samples: Annotated[int, Field(ge=2, lt=2**31)] = 4
    by: Literal["task", "reward", "length"] = "task"
    longer: Annotated[float, Field(ge=1)] = 1.5


class RewardModel(Trained):
    """A scalar head on the starting model, trained on ranked responses (InstructGPT,
    arXiv:2203.02155, eq. 1).
    """

    kind: Literal["reward_model"]
    data: str  # a rank stage's name | a JSONL or Parquet file | hf:OWNER/NAME
    steps: Positive
    batch: Positive = 16  # rankings a step
    held_out: Annotated[float, Field(gt=0, lt=1)] = (
        0.1  # share of the prompts whose pairs are for measuring only
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.lora is not None and not self.lora.merge:
            raise ValueError(
                "a reward model's head is no adapter, so it is kept whole; drop lora.merge = false"
            )
        return self


class DPO(Trained, Makes):
    """Direct preference optimization on ranked responses (DPO, arXiv:2305.18290)."""

    kind: Literal["dpo"]
    data: str
    reference: str = "start"
    beta: Rate = 0.1
    steps: Positive
    batch: Positive = 16


class Merge(Makes):
    """The weighted average of several models' weights."""

    kind: Literal["merge"]
    models: Annotated[
        dict[str, Share], Field(min_length=2)
    ]  # a stage's name, a directory or Hub id -> its share

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(sum(self.models.values()) - 1) > 1e-6:
            raise ValueError(
                f"the shares of models sum to {sum(self.models.values()):g}; they must sum to 1"
            )
        if self.start != "previous":
            raise ValueError("merge starts from the models that it names; drop start")
        return self


class Evaluate(Evaluation):
    name: Annotated[str, Field(pattern=NAME)]
    kind: Literal["evaluate"]
    start: str = "previous"


AnyStage = Annotated[
    SFT | RL | Reject | Rank | RewardModel | DPO | Merge | Evaluate, Field(discriminator="kind")
]

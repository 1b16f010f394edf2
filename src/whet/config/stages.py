"""The stages of a recipe, each kind with its own keys."""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from whet.algorithms.algorithm import Algorithm
from whet.algorithms.table import algorithm
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
from whet.errors import RecipeError

RANKINGS = "rankings: a rank stage's name, a JSONL or Parquet file, or hf:OWNER/NAME"


class Stage(Table):
    """One step of the pipeline."""

    name: str = Field(pattern=NAME, description="the stage's name, and its directory's in the run")
    start: str = Field(
        default="previous",
        description="model it starts from: previous (the stage before), new (made from nothing), "
        "a stage's name, a directory or a Hub id",
    )


class Trained(Stage):
    """Updates weights."""

    optimizer: Optimizer = Field(default=Optimizer(), description="how weights are updated")
    micro_tokens: Positive = Field(
        default=4096, description="tokens in one forward pass; bounds memory"
    )
    lora: Lora | None = Field(default=None, description="train adapters in place of all weights")


class Makes(Stage):
    """Leaves a policy behind, which is measured."""

    evaluate: bool = Field(default=True, description="measure the model afterwards")


class Asks(Stage):
    """Takes problems of the task."""

    only: str | None = Field(
        default=None, description="part of a mix whose problems the stage takes; default: all parts"
    )


class Draws(Asks):
    """Samples answers and scores them."""

    reward: list[Reward] = Field(
        default=[], description="parts of the reward; default: the recipe's"
    )
    temperature: Temperature = Field(default=1.0, gt=0, description="temperature of sampling")
    max_tokens: Positive = Field(default=128, description="longest answer")


class SFT(Trained, Makes, Asks):
    """Supervised fine-tuning on right answers, as the task's corpus or a reject stage has them."""

    kind: Literal["sft"] = Field(description="supervised fine-tuning")
    shape: Shape | None = Field(
        default=None, description="size of a model of its own, made from nothing"
    )
    data: str | dict[str, Share] = Field(
        default="corpus",
        description="corpus (the task's), a reject stage's name, or a table: the share of each",
    )
    mix: dict[str, Share] = Field(
        default={}, description="share of each mode of answering in the corpus"
    )
    steps: Positive = Field(description="updates")
    batch: Positive = Field(default=16, description="examples an update")
    gate: Gate | None = Field(
        default=None, description="what the model must reach before the next stage"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.shape is not None and self.start not in ("previous", "new"):
            raise ValueError(
                f"shape makes a new model, and start = {self.start!r} names another; drop one"
            )
        if self.lora is not None and (self.shape is not None or self.start == "new"):
            raise ValueError(
                "lora adapts a trained model, and this stage makes a new one; drop one"
            )
        if not sum(self.shares.values()) > 0:
            raise ValueError("no share in data is above 0")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of each source of data."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(self.data)


class RL(Trained, Makes, Draws):
    """Reinforcement learning on the model's own answers."""

    kind: Literal["rl"] = Field(description="reinforcement learning")
    algorithm: str = Field(default="dr_grpo", description="row of the table of algorithms")
    override: dict[str, Any] = Field(default={}, description="cells of that row with other values")
    reference: str = Field(
        default="start",
        description="model that a KL holds the policy to, or the teacher: start (the stage's own), "
        "a stage's name, a directory or a Hub id",
    )
    critic: Critic | None = Field(
        default=None,
        description="optimizer of the critic, or of the token-level reward model; default: the "
        "policy's",
    )
    pool: Positive | None = Field(
        default=None,
        description="prompts to choose among, where the row prioritises; default: all, at most "
        "4096",
    )
    steps: Positive = Field(description="rollouts")
    prompts: Positive = Field(default=32, description="prompts a rollout")
    samples: Positive = Field(default=8, description="answers drawn for each prompt")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="share of probability that answers are drawn from"
    )
    top_k: Count = Field(
        default=0, description="likeliest tokens that answers are drawn from; 0: all"
    )
    ahead: Literal[0, 1] = Field(
        default=0,
        description="1: answers are drawn one step ahead, while the last ones are scored",
    )
    draws: Positive = Field(
        default=3, description="most draws a step, where the row samples dynamically"
    )
    max_errors: Share = Field(
        default=0.2, description="share of a step's scores that may fail before the run stops"
    )
    probe: Count = Field(
        default=8, description="test problems that are answered again and again; 0: none"
    )
    probe_every: Positive = Field(default=10, description="steps from one probe to the next")

    @cached_property
    def row(self) -> Algorithm:
        """The algorithm's row with the cells of `override`. Raises RecipeError."""
        return algorithm(self.algorithm, self.override)

    @model_validator(mode="after")
    def _row_is_known(self) -> Self:
        try:
            _ = self.row
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some keys changed, which resolves its own row."""
        copied = super().model_copy(update=update, deep=deep)
        vars(copied).pop("row", None)
        return copied


class Reject(Draws):
    """Draws samples and keeps the right ones, as data for a later sft stage."""

    kind: Literal["reject"] = Field(description="rejection sampling")
    problems: Positive = Field(description="training problems")
    samples: Positive = Field(default=1, description="answers drawn for each problem")
    per_prompt: Positive = Field(
        default=1, description="right answers kept of each problem, at most"
    )
    choose: Literal["first", "shortest"] = Field(
        default="first", description="which of them are kept"
    )


class Rank(Draws):
    """Draws samples and ranks them, as data for a later reward_model or dpo stage.

    By `length`, each problem's shortest right answer stands before its wrong answers that are
    longer and its right ones of at least `longer` times the length (Kimi k1.5, arXiv:2501.12599,
    sec. 2.4).
    """

    kind: Literal["rank"] = Field(description="ranked answers")
    problems: Positive = Field(description="training problems")
    samples: int = Field(default=4, ge=2, lt=2**31, description="answers drawn for each problem")
    by: Literal["task", "reward", "length"] = Field(
        default="task",
        description="task: the task's own ranking, with a labeller's noise; "
        "reward: the reward's value; length: short right answers first",
    )
    longer: float = Field(
        default=1.5,
        ge=1,
        description="by length: how many times longer a right answer is that counts as worse",
    )


class RewardModel(Trained):
    """Trains a scalar head on ranked responses (InstructGPT, arXiv:2203.02155, eq. 1)."""

    kind: Literal["reward_model"] = Field(description="reward model")
    data: str = Field(description=RANKINGS)
    steps: Positive = Field(description="updates")
    batch: Positive = Field(default=16, description="rankings an update")
    held_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the prompts whose rankings only measure the model",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.lora is not None and not self.lora.merge:
            raise ValueError(
                "a reward model's head is not an adapter, so the model is saved whole; "
                "drop lora.merge = false"
            )
        return self


class DPO(Trained, Makes):
    """Direct preference optimization on ranked responses (DPO, arXiv:2305.18290)."""

    kind: Literal["dpo"] = Field(description="direct preference optimization")
    data: str = Field(description=RANKINGS)
    reference: str = Field(
        default="start",
        description="frozen reference: start, a stage's name, a directory or a Hub id",
    )
    beta: Rate = Field(default=0.1, description="how closely the policy stays with the reference")
    steps: Positive = Field(description="updates")
    batch: Positive = Field(default=16, description="rankings an update")


class Merge(Makes):
    """The weighted average of several models' weights."""

    kind: Literal["merge"] = Field(description="weighted average of models")
    models: dict[str, Share] = Field(
        min_length=2, description="share of each: a stage's name, a directory or a Hub id"
    )

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
    """Measures a model once more, in another way."""

    name: str = Field(pattern=NAME, description="the stage's name")
    kind: Literal["evaluate"] = Field(description="measurement")
    start: str = Field(
        default="previous",
        description="model: previous, new, a stage's name, a directory or a Hub id",
    )


AnyStage = Annotated[
    SFT | RL | Reject | Rank | RewardModel | DPO | Merge | Evaluate, Field(discriminator="kind")
]

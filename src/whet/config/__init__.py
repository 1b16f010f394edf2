"""A recipe as validated data: its tables, its stages, and `load`, which reads the TOML.

Nothing here knows how a stage runs, or what a task or a reward is.
"""

from typing import Self

from pydantic import Field, model_validator

from whet.config.stages import (
    DPO,
    RL,
    SFT,
    AnyStage,
    Asks,
    Draws,
    Evaluate,
    Makes,
    Merge,
    Rank,
    Reject,
    RewardModel,
    Stage,
    Trained,
)
from whet.config.tables import (
    NAME,
    Ask,
    Critic,
    Evaluation,
    Gate,
    Lora,
    Model,
    Optimizer,
    Reward,
    Save,
    Seed,
    Shape,
    Table,
    Task,
)
from whet.errors import did_you_mean

__all__ = [
    "DPO",
    "RL",
    "SFT",
    "AnyStage",
    "Ask",
    "Asks",
    "Critic",
    "Draws",
    "Evaluate",
    "Evaluation",
    "Gate",
    "Lora",
    "Makes",
    "Merge",
    "Model",
    "Optimizer",
    "Rank",
    "Recipe",
    "Reject",
    "Reward",
    "RewardModel",
    "Save",
    "Shape",
    "Stage",
    "Table",
    "Task",
    "Trained",
]


RESERVED = ("samples", "model", "previous", "new", "corpus")  # no names for stages


class Recipe(Table):
    """One run: a model, a task, a reward and the stages that train it."""

    name: str = Field(pattern=NAME, description="the run's name, and its directory's")
    about: str = Field(default="", description="what the recipe is for, in a sentence")
    seed: Seed = Field(default=1, description="fixes all that is drawn")
    result: str | None = Field(
        default=None,
        description="stage whose model becomes model/; default: the last that makes a policy",
    )
    model: Model = Field(default=Model(), description="the model that the first stage starts from")
    task: Task = Field(description="the problems")
    ask: Ask = Field(default=Ask(), description="how a problem becomes a prompt")
    reward: list[Reward] = Field(
        default=[Reward()], description="parts of the reward; it is their sum"
    )
    evaluation: Evaluation = Field(default=Evaluation(), description="how models are measured")
    save: Save = Field(default=Save(), description="checkpoints within a stage")
    stage: list[AnyStage] = Field(min_length=1, description="the stages, in order")

    @property
    def trained(self) -> list[str]:
        """The names of the stages that make a policy, in order."""
        return [s.name for s in self.stage if isinstance(s, Makes)]

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        kinds: dict[str, str] = {}
        for stage in self.stage:
            if stage.name in kinds:
                raise ValueError(f"two stages are named {stage.name!r}")
            if stage.name in RESERVED:
                raise ValueError(
                    f"a stage cannot be named {stage.name!r}: the word has a meaning of its own"
                )
            if isinstance(stage, SFT):
                _check_data(stage, [name for name, kind in kinds.items() if kind == "reject"])
            kinds[stage.name] = stage.kind
        if self.result is not None and self.result not in self.trained:
            raise ValueError(
                f"result = {self.result!r} makes no policy{did_you_mean(self.result, self.trained)}"
            )
        return self


def _check_data(stage: SFT, rejects: list[str]) -> None:
    """Raises ValueError where a source of data is neither the corpus nor an earlier reject stage."""
    for data in stage.shares:
        if data != "corpus" and data not in rejects:
            raise ValueError(
                f"stage {stage.name}: data = {data!r} is neither corpus nor an earlier reject "
                f"stage{did_you_mean(data, ['corpus', *rejects])}"
            )
    if stage.mix and not stage.shares.get("corpus"):
        raise ValueError(
            f"stage {stage.name}: mix is of the corpus, and data takes nothing from it; drop mix"
        )

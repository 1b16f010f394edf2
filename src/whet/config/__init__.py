"""What a recipe may say, as validated data; recipes.py reads the files."""

from typing import Annotated, Self

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


class Recipe(Table):
    name: Annotated[str, Field(pattern=NAME)]
    about: str = ""
    seed: Seed = 1
    result: str | None = (
        None  # the stage whose model becomes model/; the last trained one where not given
    )
    model: Model = Model()
    task: Task
    ask: Ask = Ask()
    reward: list[Reward] = [Reward()]
    evaluation: Evaluation = Evaluation()
    save: Save = Save()
    stage: Annotated[list[AnyStage], Field(min_length=1)]

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
            if stage.name in ("samples", "model", "previous", "new", "corpus"):
                raise ValueError(
                    f"a stage cannot be named {stage.name!r}: the word has a meaning of its own"
                )
            for data in stage.shares if isinstance(stage, SFT) else ():
                if data != "corpus" and kinds.get(data) != "reject":
                    known = did_you_mean(
                        data,
                        ["corpus", *(name for name, kind in kinds.items() if kind == "reject")],
                    )
                    raise ValueError(
                        f"stage {stage.name}: data = {data!r} is neither corpus nor an earlier reject stage{known}"
                    )
            if isinstance(stage, SFT) and stage.mix and not stage.shares.get("corpus"):
                raise ValueError(
                    f"stage {stage.name}: mix is of the corpus, and data takes nothing from it; drop mix"
                )
            kinds[stage.name] = stage.kind
        if self.result is not None and self.result not in self.trained:
            raise ValueError(
                f"result = {self.result!r} makes no policy{did_you_mean(self.result, self.trained)}"
            )
        return self

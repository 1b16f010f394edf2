"""What would stop a later stage of a recipe, found before its first begins."""

import os
from collections.abc import Mapping

from whet import config
from whet.errors import RecipeError, did_you_mean
from whet.model import pretrained
from whet.pipeline.setup import narrowed, refuse_lora
from whet.stages import rank, rl
from whet.types import Task


def refuse(recipe: config.Recipe, whole: Task) -> None:
    """Whatever would stop a later stage stops the run before its first. Raises WhetError."""
    earlier: dict[str, str] = {"previous": "", "new": ""}

    def known(*names: str) -> None:
        for name in names:
            if name not in earlier:
                pretrained.resolve(name)

    if (
        recipe.model.path is not None
        and pretrained.resolve(recipe.model.path)
        and recipe.model.shape != config.Shape()
    ):
        raise RecipeError(
            "model.path names the model, so model.shape would not be read; drop one of them"
        )
    for part in recipe.reward:
        if part.name == "learned" and part.options.get("model") in [s.name for s in recipe.stage]:
            raise RecipeError(
                f"reward learned: stage {part.options['model']} makes its model only later, and every stage is measured by the recipe's "
                "reward; name it in the [[stage.reward]] of the rl stage"
            )
    for stage in recipe.stage:
        known(stage.start)
        if isinstance(stage, config.Trained):
            refuse_lora(recipe, stage)
        task = narrowed(whole, stage)
        if isinstance(stage, config.RL):
            rl.refuse(stage)
            known(*([] if stage.reference == "start" else [stage.reference]))
            known(
                *(
                    [stage.critic.start]
                    if stage.critic is not None and stage.critic.start is not None
                    else []
                )
            )
        if isinstance(stage, config.Merge):
            known(*stage.models)
        if isinstance(stage, config.DPO):
            known(*([] if stage.reference == "start" else [stage.reference]))
        if isinstance(stage, config.Rank):
            rank.refuse(stage, task)
        if isinstance(stage, config.DPO | config.RewardModel):
            refuse_data(stage, earlier)
        if isinstance(stage, config.Draws):
            for part in stage.reward:
                if part.name == "learned" and isinstance(part.options.get("model"), str):
                    known(part.options["model"])
        if isinstance(stage, config.SFT):
            gate = stage.gate
            for mode in [*stage.mix, *([gate.mode, gate.above] if gate else [])]:
                if mode is not None and mode not in task.modes:
                    suffix = (
                        did_you_mean(mode, task.modes)
                        if task.modes
                        else "; this task tells none apart"
                    )
                    raise RecipeError(
                        f"stage {stage.name}: task {task.name} has no mode {mode!r}{suffix}"
                    )
        earlier[stage.name] = stage.kind


def refuse_data(stage: config.DPO | config.RewardModel, earlier: Mapping[str, str]) -> None:
    """Raises RecipeError where a stage's ranked responses come from nowhere."""
    if (
        earlier.get(stage.data) == "rank"
        or stage.data.startswith("hf:")
        or os.path.isfile(os.path.expanduser(stage.data))
    ):
        return
    ranks = [name for name, kind in earlier.items() if kind == "rank"]
    cure = (
        did_you_mean(stage.data, ranks)
        if ranks
        else "; put a rank stage before it, or name a file or hf:OWNER/NAME"
    )
    raise RecipeError(
        f"stage {stage.name}: data = {stage.data!r} is no earlier rank stage, no file and no data set of the Hub{cure}"
    )

"""Refuses, before its first stage, a recipe whose later stages could not run."""

import os
from collections.abc import Iterator, Mapping

from whet import config
from whet.errors import RecipeError, did_you_mean
from whet.model import lora_files, pretrained
from whet.model.config_file import FAMILIES, model_type
from whet.pipeline.setup import stage_task, starting_model
from whet.stages import rank, rl
from whet.types import Task


def validate(recipe: config.Recipe, whole: Task) -> None:
    """Raises WhetError for the first fault found; `whole` is the recipe's task."""
    _validate_model(recipe.model)
    _validate_reward(recipe)
    earlier: dict[str, str] = {"previous": "", "new": ""}  # name -> kind
    for stage in recipe.stage:
        task = stage_task(whole, stage)
        if isinstance(stage, config.Trained):
            _validate_lora(recipe, stage)
        if isinstance(stage, config.RL):
            rl.refuse(stage)
        if isinstance(stage, config.Rank):
            rank.refuse(stage, task)
        if isinstance(stage, config.SFT):
            _validate_modes(stage, task)
        if isinstance(stage, config.DPO | config.RewardModel):
            _validate_rankings(stage, earlier)
        for name in _models_read(stage):
            if name not in earlier:
                pretrained.resolve(name)
        earlier[stage.name] = stage.kind


def _validate_model(model: config.Model) -> None:
    if model.path is not None and pretrained.resolve(model.path) and model.shape != config.Shape():
        raise RecipeError(
            "model.path names the model, so model.shape would not be read; drop one of them"
        )


def _validate_reward(recipe: config.Recipe) -> None:
    stages = [s.name for s in recipe.stage]  # no set: an option may be unhashable
    for part in recipe.reward:
        if part.name == "learned" and part.options.get("model") in stages:
            raise RecipeError(
                f"reward learned: stage {part.options['model']} makes its model only later, and every stage "
                "is measured by the recipe's reward; name it in the [[stage.reward]] of the rl stage"
            )


def _models_read(stage: config.AnyStage) -> Iterator[str]:
    """Names every model that a stage loads: a stage, a directory or a Hub id."""
    yield stage.start
    if isinstance(stage, config.Merge):
        yield from stage.models
    if isinstance(stage, config.RL | config.DPO) and stage.reference != "start":
        yield stage.reference
    if isinstance(stage, config.RL) and stage.critic is not None and stage.critic.start is not None:
        yield stage.critic.start
    if isinstance(stage, config.Draws):
        for part in stage.reward:
            if part.name == "learned" and isinstance(part.options.get("model"), str):
                yield part.options["model"]


def _validate_modes(stage: config.SFT, task: Task) -> None:
    """Raises RecipeError where the stage's mix or gate names a mode that the task lacks."""
    gate = stage.gate
    for mode in [*stage.mix, *([gate.mode, gate.above] if gate else [])]:
        if mode is not None and mode not in task.modes:
            cure = did_you_mean(mode, task.modes) if task.modes else "; this task tells none apart"
            raise RecipeError(f"stage {stage.name}: task {task.name} has no mode {mode!r}{cure}")


def _validate_rankings(stage: config.DPO | config.RewardModel, earlier: Mapping[str, str]) -> None:
    """Raises RecipeError where `data` names no source of rankings."""
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
        f"stage {stage.name}: data = {stage.data!r} is no earlier rank stage, no file "
        f"and no data set of the Hub{cure}"
    )


def _validate_lora(recipe: config.Recipe, stage: config.Trained) -> None:
    """Raises WhetError where the stage's adapters do not fit the model that it starts from."""
    if stage.lora is None:
        return
    source = starting_model(recipe, stage)
    if source is None:
        raise RecipeError(
            f"stage {stage.name}: lora adapts a model that has been trained, and here is none yet; drop lora"
        )
    existing = _adapters_of(recipe, stage, source)
    if existing is not None and not existing.adapts_like(stage.lora):
        raise RecipeError(
            f"stage {stage.name}: {source} has adapters of rank {existing.rank} and alpha {existing.alpha:g} "
            f"on {', '.join(existing.targets)}, and lora asks for others; "
            "give it the same, or keep merge = true where they were trained"
        )


def _adapters_of(recipe: config.Recipe, stage: config.Trained, source: str) -> config.Lora | None:
    """Returns the unmerged adapters of the model that the stage starts from, if it has any.

    Raises RecipeError where that model is of an architecture that LoRA cannot adapt.
    """
    before = next((s for s in recipe.stage if s.name == source), None)
    if before is not None:
        lora = before.lora if isinstance(before, config.Trained) else None
        return None if lora is None or lora.merge else lora
    folder = pretrained.resolve(source)
    kind = model_type(pretrained.base_directory(folder))
    if kind not in FAMILIES:
        raise RecipeError(
            f"stage {stage.name}: lora adapts whet's own decoder only ({', '.join(FAMILIES)}), "
            f"and {source} is a {kind}; drop lora"
        )
    return lora_files.shape_of(folder) if lora_files.holds_adapter(folder) else None

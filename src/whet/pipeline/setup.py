"""Builds what a recipe names: rewards, the task of a stage, tokenizer, models on their device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from whet import config
from whet.chat import Chat
from whet.config.thinking import measured
from whet.errors import RecipeError, did_you_mean
from whet.model import pretrained
from whet.model.config import ModelConfig
from whet.model.config_file import FAMILIES
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.rewards import Reward, combined
from whet.tasks.mix import Mix
from whet.types import Task

SMALL = 2_000_000  # parameters, up to which a second thread costs more than it brings
THREADS = torch.get_num_threads()


def build_reward(
    recipe: config.Recipe, parts: Sequence[config.Reward], task: Task, directory: Path
) -> Reward:
    """Returns the sum of the parts. Raises RewardError for an option that a part refuses.

    A `learned` part may name a reward_model stage: it then scores with the model that the stage
    leaves in the run's directory, under the policy's own system message.
    """
    stages = [s.name for s in recipe.stage]  # no set: an option may be unhashable

    def options(part: config.Reward) -> dict[str, Any]:
        if part.name != "learned" or part.options.get("model") not in stages:
            return part.options
        system = {} if recipe.ask.system is None else {"system": recipe.ask.system}
        return {**system, **part.options, "model": str(directory / part.options["model"] / "model")}

    return combined([(part.name, part.weight, options(part)) for part in parts], task)


def stage_task(task: Task, stage: config.AnyStage) -> Task:
    """Returns the part of a mix that the stage's `only` names, or the whole task without `only`.

    Raises RecipeError where the task has no such part.
    """
    if not isinstance(stage, config.Asks) or stage.only is None:
        return task
    if not isinstance(task, Mix):
        raise RecipeError(
            f"stage {stage.name}: task {task.name} is no mix, so only = {stage.only!r} means nothing; drop it"
        )
    if stage.only not in task.members:
        raise RecipeError(
            f"stage {stage.name}: only = {stage.only!r} is no part{did_you_mean(stage.only, task.members)}"
        )
    return task.part(stage.only)


def load_chat(recipe: config.Recipe, task: Task) -> tuple[Chat, Path | None]:
    """Returns the model's tokenizer and directory; without model.path the task's alphabet and None.

    Raises ModelError where the recipe measures both thinking modes and the template has no switch.
    """
    if recipe.model.path is None:
        return Chat.from_characters(task.alphabet()), None
    path = pretrained.resolve(recipe.model.path)
    chat = Chat.load(pretrained.tokenizer_directory(path))
    specs = [recipe.evaluation, *(s for s in recipe.stage if isinstance(s, config.Evaluation))]
    if any(len(measured(spec.thinking, recipe.ask.thinking)) > 1 for spec in specs):
        chat.demand_switch()
    return chat, path


def load_policy(recipe: config.Recipe, directory: Path, source: str) -> Policy:
    """Loads a model onto its device: an earlier stage's by name, a directory's or a Hub id's."""
    of_stage = directory / source / "model"
    path = str(of_stage) if of_stage.exists() else source
    return to_device(pretrained.load(path, dtype=getattr(torch, recipe.model.dtype)), recipe.model)


def to_device(policy: Policy, spec: config.Model) -> Policy:
    """Moves a model to its device, and sets torch's threads to as many as the model can use.

    Raises RecipeError where the device is missing, or `recompute` is set for a foreign decoder.
    """
    device = spec.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            'model.device = "cuda", and torch finds no GPU that it can use here; take "auto" or "cpu"'
        )
    if isinstance(policy, Transformer):
        policy.recompute = spec.recompute
    elif spec.recompute:
        raise RecipeError(
            f"model.recompute is for whet's own decoder ({', '.join(FAMILIES)}), "
            f"and this is a {policy.config.family}; drop it"
        )
    small = sum(p.numel() for p in policy.parameters()) <= SMALL
    torch.set_num_threads(spec.threads or (1 if small else THREADS))
    return policy.to(device)


def new_policy(shape: config.Shape, chat: Chat, seed: int) -> Transformer:
    """Returns a model of the shape with random weights that the seed fixes."""
    model = ModelConfig(
        **shape.model_dump(),
        vocab=chat.vocab,
        head_dim=shape.hidden // shape.heads,
        qk_norm=shape.family == "qwen3",
        qkv_bias=shape.family == "qwen2",
        bos=chat.bos,
        eos=chat.eos,
        pad=chat.pad,
    )
    return Transformer(model).initialize(torch.Generator().manual_seed(seed))


def starting_model(recipe: config.Recipe, stage: config.Stage) -> str | None:
    """Names the model a stage starts from: an earlier stage, a directory or a Hub id.

    Returns None where the stage starts from random weights.
    """
    if stage.start != "previous":
        return None if stage.start == "new" else stage.start
    before = recipe.stage[: [s.name for s in recipe.stage].index(stage.name)]
    makers = [s.name for s in before if isinstance(s, config.Makes)]
    return makers[-1] if makers else recipe.model.path

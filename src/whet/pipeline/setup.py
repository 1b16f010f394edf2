"""What a recipe starts from: its tokenizer, its models on their device, its rewards."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from whet import config
from whet.chat import Chat
from whet.config.thinking import measured
from whet.errors import RecipeError, did_you_mean
from whet.model import lora_files, pretrained
from whet.model.config import ModelConfig
from whet.model.config_file import FAMILIES, model_type
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.rewards import Reward, combined
from whet.storage.atomic import committed
from whet.tasks.mix import Mix
from whet.types import Task

SMALL = 2_000_000  # parameters, up to which a second thread costs more than it brings
THREADS = torch.get_num_threads()


def rewarded(
    recipe: config.Recipe, parts: Sequence[config.Reward], task: Task, directory: Path
) -> Reward:
    """The reward of some parts. A reward model named by its stage is the one in the run's
    directory, and reads prompts as the policy does.
    """
    stages = [s.name for s in recipe.stage]  # no set: an option may be of any kind

    def given(part: config.Reward) -> dict[str, Any]:
        options = part.options
        if part.name != "learned" or options.get("model") not in stages:
            return options
        asked = (
            {} if recipe.ask.system is None else {"system": recipe.ask.system}
        )  # a problem's meta says the thinking
        return {**asked, **options, "model": str(directory / options["model"] / "model")}

    return combined([(part.name, part.weight, given(part)) for part in parts], task)


def narrowed(task: Task, stage: config.AnyStage) -> Task:
    """The part of a mixture that a stage asks or learns from; all of the task where it names none.
    Raises RecipeError.
    """
    if not isinstance(stage, config.Asks) or stage.only is None:
        return task
    if not isinstance(task, Mix):
        raise RecipeError(
            f"stage {stage.name}: task {task.name} is no mix, so only = {stage.only!r} means nothing"
        )
    if stage.only not in task.members:
        raise RecipeError(
            f"stage {stage.name}: only = {stage.only!r} is no part{did_you_mean(stage.only, task.members)}"
        )
    return task.part(stage.only)


def tokenizer(recipe: config.Recipe, task: Task) -> tuple[Chat, Path | None]:
    """The tokenizer of the model's directory, or one made from the task's alphabet."""
    if recipe.model.path is not None:
        path = pretrained.resolve(recipe.model.path)
        chat = Chat.load(pretrained.tokenizer_directory(path))
        specs = [recipe.evaluation, *(s for s in recipe.stage if isinstance(s, config.Evaluation))]
        if any(len(measured(spec.thinking, recipe.ask.thinking)) > 1 for spec in specs):
            chat.demand_switch()
        return chat, path
    return Chat.from_characters(task.alphabet()), None


def loaded(recipe: config.Recipe, directory: Path, source: str) -> Policy:
    """The model of an earlier stage, a directory or a Hub id, on its device."""
    own = directory / source / "model"
    found = pretrained.load(
        str(own) if own.exists() else source, dtype=getattr(torch, recipe.model.dtype)
    )
    return place(found, recipe.model)


def place(policy: Policy, spec: config.Model) -> Policy:
    """The model on its device, and as many threads as it can use. Raises RecipeError where the
    device is not there, or `recompute` is for another.
    """
    wanted = (
        ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
    )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RecipeError(
            'model.device = "cuda", and torch finds no GPU that it can use here; take "auto" or "cpu"'
        )
    if isinstance(policy, Transformer):
        policy.recompute = spec.recompute
    elif spec.recompute:
        raise RecipeError(
            f"model.recompute is for whet's own decoder ({', '.join(FAMILIES)}), and this is a {policy.config.family}; drop it"
        )
    small = sum(p.numel() for p in policy.parameters()) <= SMALL
    torch.set_num_threads(spec.threads or (1 if small else THREADS))
    return policy.to(wanted)


def fresh(shape: config.Shape, chat: Chat, seed: int) -> Transformer:
    """A model from nothing, its weights fixed by the seed."""
    model = ModelConfig(
        family=shape.family,
        vocab=chat.vocab,
        hidden=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        ffn=shape.ffn,
        qk_norm=shape.family == "qwen3",
        qkv_bias=shape.family == "qwen2",
        max_positions=shape.max_positions,
        bos=chat.bos,
        eos=chat.eos,
        pad=chat.pad,
    )
    return Transformer(model).initialize(torch.Generator().manual_seed(seed))


def save(policy: Policy, chat: Chat, directory: Path) -> None:
    """Weights and tokenizer in one commit: a Hugging Face directory, whole or absent."""
    with committed(directory) as folder:
        pretrained.write(policy, folder)
        chat.save(folder)


def keep(
    policy: Policy, chat: Chat, stage: config.Makes, recipe: config.Recipe, directory: Path
) -> None:
    """A stage's model on disk. Adapters are in STAGE/adapter, and folded into STAGE/model and into
    `policy`; or they are STAGE/model.
    """
    lora = stage.lora if isinstance(stage, config.Trained) else None
    folder = directory / stage.name
    if lora is not None:
        with committed(folder / ("adapter" if lora.merge else "model")) as made:
            lora_files.write(policy, made, base(recipe, directory, stage))
            chat.save(made)
        if not lora.merge:
            return
        adapt(policy, None)
    save(policy, chat, folder / "model")


def origin(recipe: config.Recipe, stage: config.Stage) -> str | None:
    """What a stage begins with: an earlier stage's name, a directory or a Hub id; None where that
    is made from nothing.
    """
    if stage.start != "previous":
        return None if stage.start == "new" else stage.start
    names = [s.name for s in recipe.stage]
    makers = [
        s.name for s in recipe.stage[: names.index(stage.name)] if isinstance(s, config.Makes)
    ]
    return makers[-1] if makers else recipe.model.path


def base(recipe: config.Recipe, directory: Path, stage: config.Stage) -> str:
    """The whole model below a stage's adapters: a Hub id, or a directory, named from the adapter's
    own where both are of this run.
    """
    source = origin(recipe, stage)
    assert source is not None  # refuse_lora has seen to it
    own = directory / source / "model"
    name = str(own) if own.is_dir() else source
    found = pretrained.resolve(name)
    if lora_files.holds_adapter(found):
        name = lora_files.base_of(found)
    if not Path(name).expanduser().is_dir():
        return name
    path = Path(name).expanduser().resolve()
    inside = path.is_relative_to(directory.resolve())
    return (
        os.path.relpath(path, directory.resolve() / stage.name / "model") if inside else str(path)
    )


def refuse_lora(recipe: config.Recipe, stage: config.Trained) -> None:
    """Raises WhetError where a stage's adapters could not be trained on what it begins with."""
    if stage.lora is None:
        return
    source = origin(recipe, stage)
    if source is None:
        raise RecipeError(
            f"stage {stage.name}: lora adapts a model that has been trained, and here is none yet; drop lora"
        )
    before = next((s for s in recipe.stage if s.name == source), None)
    if before is not None:
        left = before.lora if isinstance(before, config.Trained) else None
        left = None if left is None or left.merge else left
    else:
        found = pretrained.resolve(source)
        if model_type(pretrained.base_directory(found)) not in FAMILIES:
            raise RecipeError(
                f"stage {stage.name}: lora adapts whet's own decoder only ({', '.join(FAMILIES)}), and {source} is a "
                f"{model_type(pretrained.base_directory(found))}; drop lora"
            )
        left = lora_files.shape_of(found) if lora_files.holds_adapter(found) else None
    if left is not None and not left.adapts_like(stage.lora):
        raise RecipeError(
            f"stage {stage.name}: {source} has adapters of rank {left.rank} and alpha {left.alpha:g} on {', '.join(left.targets)}, and lora "
            "asks for others; give it the same, or keep merge = true where they were trained"
        )

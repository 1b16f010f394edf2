"""Writes a stage's model to the run's directory: weights and tokenizer, or LoRA adapters."""

import os
from pathlib import Path

from whet import config
from whet.chat import Chat
from whet.model import lora_files, pretrained
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.pipeline.setup import starting_model
from whet.storage.atomic import committed


def save(policy: Policy, chat: Chat, directory: Path) -> None:
    """Writes weights and tokenizer as one Hugging Face directory, whole or not at all."""
    with committed(directory) as folder:
        pretrained.write(policy, folder)
        chat.save(folder)


def save_stage(
    policy: Policy, chat: Chat, stage: config.Makes, recipe: config.Recipe, directory: Path
) -> None:
    """Writes STAGE/model. Of a stage with LoRA, writes its adapters too.

    With `merge` the adapters go to STAGE/adapter and are folded into `policy`, which becomes
    STAGE/model; without it, STAGE/model holds the adapters alone.
    """
    lora = stage.lora if isinstance(stage, config.Trained) else None
    folder = directory / stage.name
    if lora is not None:
        with committed(folder / ("adapter" if lora.merge else "model")) as partial:
            lora_files.write(policy, partial, _base_model(recipe, directory, stage))
            chat.save(partial)
        if not lora.merge:
            return
        adapt(policy, None)
    save(policy, chat, folder / "model")


def _base_model(recipe: config.Recipe, directory: Path, stage: config.Stage) -> str:
    """Names the full model below a stage's adapters: a Hub id, or a directory.

    A directory of the same run is given relative to STAGE/model, so that a run can be moved.
    """
    name = starting_model(recipe, stage)
    assert name is not None  # validate refuses LoRA on random weights
    of_stage = directory / name / "model"
    if of_stage.is_dir():
        name = str(of_stage)
    folder = pretrained.resolve(name)
    if lora_files.holds_adapter(folder):
        name = lora_files.base_of(folder)
    path = Path(name).expanduser()
    if not path.is_dir():
        return name
    path, run = path.resolve(), directory.resolve()
    return (
        os.path.relpath(path, run / stage.name / "model") if path.is_relative_to(run) else str(path)
    )

"""What a recipe starts from: its tokenizer, its models on their device, its rewards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from whet import config
from whet.chat import Chat
from whet.checkpoint import committed
from whet.model import hub
from whet.model.config import ModelConfig
from whet.model.policy import Policy
from whet.model.transformer import Transformer
from whet.rewards import Reward, combined
from whet.thinking import measured
from whet.types import Task

SMALL = 2_000_000  # parameters, up to which a second thread costs more than it brings
THREADS = torch.get_num_threads()


def rewarded(recipe: config.Recipe, parts: Sequence[config.Reward], task: Task, directory: Path) -> Reward:
    """The reward of some parts. A reward model named by its stage is the one in the run's directory, and reads prompts as the policy does."""
    stages = {s.name for s in recipe.stage}

    def given(part: config.Reward) -> dict[str, Any]:
        options = part.options
        if part.name != "learned" or options.get("model") not in stages:
            return options
        asked = {} if recipe.ask.system is None else {"system": recipe.ask.system}  # a problem's meta says the thinking
        return {**asked, **options, "model": str(directory / options["model"] / "model")}

    return combined([(part.name, part.weight, given(part)) for part in parts], task)


def tokenizer(recipe: config.Recipe, task: Task) -> tuple[Chat, Path | None]:
    """The tokenizer of the model's directory, or one made from the task's alphabet."""
    if recipe.model.path is not None:
        path = hub.resolve(recipe.model.path)
        chat = Chat.load(path)
        specs = [recipe.evaluation, *(s for s in recipe.stage if isinstance(s, config.Evaluation))]
        if any(len(measured(spec.thinking, recipe.ask.thinking)) > 1 for spec in specs):
            chat.demand_switch()
        return chat, path
    return Chat.from_characters(task.alphabet()), None


def loaded(recipe: config.Recipe, directory: Path, source: str) -> Policy:
    """The model of an earlier stage, a directory or a Hub id, on its device."""
    own = directory / source / "model"
    found = hub.load(str(own) if own.exists() else source, dtype=getattr(torch, recipe.model.dtype))
    return place(found, recipe.model)


def place(policy: Policy, spec: config.Model) -> Policy:
    """The model on its device, and as many threads as it can use."""
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
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
        hub.write(policy, folder)
        chat.save(folder)

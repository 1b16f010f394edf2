"""A model, a task and stages small enough to train inside a test."""

import json

import numpy as np
import torch

from whet import config
from whet.chat import Chat
from whet.data import preferences
from whet.engines import engine_for
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.rollout import dataset
from whet.rollout.context import Context
from whet.storage.run_log import RunLog
from whet.tasks.chain import Chain
from whet.types import Sample


class Verifier:
    """The task's own, or what a test puts in its place."""

    def __init__(self, task, judge=None):
        self.task, self.judge = task, judge

    def score(self, problems, texts, samples=None):
        return self.judge(problems, texts) if self.judge else self.task.score(problems, texts)


def world(tmp_path, judge=None, seed=3):
    task = Chain(operations=1)
    chat = Chat.from_characters(task.alphabet())
    shape = ModelConfig(
        "qwen3", chat.vocab, 32, 1, 2, 2, 16, 64, qk_norm=True, max_positions=64, eos=chat.eos
    )
    model = Transformer(shape).initialize(torch.Generator().manual_seed(seed))
    log = RunLog(tmp_path)
    return model, Context(
        task, Verifier(task, judge), chat, config.Ask(), log, seed, engine_for, lambda name: model
    )


def keep_rankings(context, rankings, stage="seen"):
    """Leaves rankings in the run's directory, as a rank stage does."""
    folder = context.log.directory / stage
    folder.mkdir(exist_ok=True)
    preferences.write(rankings, folder / dataset.RANKINGS)


def sft_stage(**keys):
    given = {
        "mix": {"direct": 1.0},
        "steps": 60,
        "batch": 32,
        "optimizer": config.Optimizer(kind="muon", lr=0.02, lr_rest=0.01),
    }
    return config.SFT(name="base", kind="sft", **{**given, **keys})


def rl_stage(**keys):
    given = {
        "steps": 3,
        "probe": 0,
        "prompts": 8,
        "samples": 4,
        "max_tokens": 8,
        "temperature": 0.8,
        "optimizer": config.Optimizer(lr=3e-3),
    }
    return config.RL(name="rl", kind="rl", **{**given, **keys})


def take_step(learner, batch, micro_tokens, loss_of):
    """One optimizer step on the weighted sum of `loss_of(micro)`, a loss [M] per token."""
    for micro in batch.split(micro_tokens):
        learner.backward((loss_of(micro) * micro.weight).sum())
    return learner.step()


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def sample(tokens, mask, logp=None, finish="stop", text=""):
    chosen = np.array(mask, bool)
    return Sample(
        np.array(tokens),
        chosen,
        np.array(logp or [-0.1 * m for m in mask], np.float32),
        text,
        finish,
    )

"""The loop of a training stage: numbered, timed and logged steps that resume from a checkpoint."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from whet import config
from whet.algorithms.batch import Pack
from whet.storage.checkpoint import Checkpoints, Stateful
from whet.storage.run_log import RunLog
from whet.training.learner import Learner, Trained
from whet.types import Sampling, Update

PLAIN = Sampling(n=1, temperature=1.0)  # the distribution in which given texts are likely or not

Stage = config.SFT | config.RL | config.RewardModel | config.DPO
Model = TypeVar("Model", bound=Trained)
Batch = TypeVar("Batch", bound=Pack)


class Step:
    """One step of a stage: its number, the seconds of its phases, its line in the log."""

    def __init__(self, number: int, stage: Stage, log: RunLog) -> None:
        self.number, self.stage, self.log = number, stage, log
        self.seconds: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        """Begins the first phase anew, without the time that has passed."""
        self.began = time.perf_counter()

    def end(self, phase: str) -> None:
        """Ends a phase of the step, such as "sample" or "update"; the next one begins."""
        now = time.perf_counter()
        self.seconds[phase], self.began = now - self.began, now

    def write(self, figures: Mapping[str, float], texts: Sequence[str]) -> None:
        """Logs the step's figures; of a lost step also the texts that it would have learned from."""
        self.log.update(
            Update(self.stage.name, self.number, figures, self.seconds), self.stage.kind
        )
        if figures.get("lost"):
            self.log.lost(self.stage.name, self.number, texts)


def steps(
    stage: Stage, parts: Mapping[str, Stateful], log: RunLog, checkpoints: Checkpoints
) -> Iterator[Step]:
    """The steps of a stage that are left: `parts` and the log are restored, and kept after each.

    Raises Stopped between two steps, where the run should stop.
    """
    parts = {**parts, "log": log}
    done = checkpoints.restore(parts, log.logged(stage.name))
    for text in checkpoints.damaged:
        log.warn(stage.name, done, text)
    log.rewind(stage.name, done)
    for number in range(done + 1, stage.steps + 1):
        yield Step(number, stage, log)
        checkpoints.keep(number, stage.steps, parts)


def learn(
    learner: Learner[Model],
    batch: Batch,
    micro_tokens: int,
    loss_of: Callable[[Batch], Float[Tensor, " m"]],
) -> dict[str, float]:
    """One optimizer step. Returns its figures, among them the learning rate that it used."""
    lr = learner.settings.lr * learner.lr_scale
    return {**learner.step(batch, micro_tokens, loss_of).values, "lr": lr}

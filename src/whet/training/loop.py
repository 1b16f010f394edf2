"""The loop of a training stage: numbered, timed and logged steps that resume from a checkpoint."""

import time
from collections.abc import Iterator, Mapping, Sequence

from whet import config
from whet.storage.checkpoint import Checkpoints, Stateful
from whet.storage.run_log import RunLog
from whet.types import Sampling, Update

PLAIN = Sampling(n=1, temperature=1.0)  # the distribution in which given texts are likely or not

Stage = config.SFT | config.RL | config.RewardModel | config.DPO


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

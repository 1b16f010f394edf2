"""What every stage is handed: the task, its reward, the tokenizer, the log, and the means to
sample.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from whet.chat import Chat
from whet.chat.thinking import left
from whet.config import Ask
from whet.config.thinking import stands
from whet.data import preferences
from whet.errors import DataError, ModelError
from whet.model.policy import Policy
from whet.rewards import Reward
from whet.rollout.rollout import endless
from whet.storage.checkpoint import Holds, Saves
from whet.storage.run_log import RunLog
from whet.types import Engine, Problem, Prompt, Ranking, Sample, Task


@dataclass(frozen=True)
class Context:
    task: Task
    reward: Reward
    chat: Chat
    ask: Ask
    log: RunLog
    seed: int
    engine: Callable[[Policy, Chat], Engine]
    model: Callable[[str], Policy]  # of an earlier stage, a directory or a Hub id
    data: dict[str, list[tuple[Problem, str]]] = field(
        default_factory=dict
    )  # by reject stage: (problem, verified response)
    saves: Saves = field(
        default_factory=lambda: Saves(Path(), every=1 << 62)
    )  # of the stage; unless told otherwise, none
    rankings: dict[str, list[Ranking]] = field(default_factory=dict)  # by rank stage

    def resumed(self, stage: str, parts: Mapping[str, Holds]) -> int:
        """Puts the parts of a stage's loop back to where it was kept last, and the log with them.
        Returns the step, 0 at its beginning.
        """
        step = self.saves.restored({**parts, "log": self.log}, self.log.logged(stage))
        for text in self.saves.damaged:
            self.log.warn(stage, step, text)
        self.log.rewind(stage, step)
        return step

    def kept(self, step: int, steps: int, parts: Mapping[str, Holds]) -> None:
        """After each step of a stage's loop. Raises Stopped where the run is to stop."""
        self.saves.kept(step, steps, {**parts, "log": self.log})

    def prompts(
        self, problems: Sequence[Problem], seed: int | None = None, thinking: bool | None = None
    ) -> list[Prompt]:
        """The problems as the model reads them, with thinking as given, else as the problem's meta
        says, else as the recipe asks.

        Where that is a share, a hash of the problem's id and the seed (the context's where not
        given) decides for each.
        """
        return [self._asked(p, self.seed if seed is None else seed, thinking) for p in problems]

    def _asked(self, problem: Problem, seed: int, thinking: bool | None) -> Prompt:
        if thinking is None:
            own = problem.meta.get("thinking")
            thinking = (
                own if isinstance(own, bool) else stands(self.ask.thinking, f"{seed} {problem.id}")
            )
        if thinking is not None:
            problem = replace(problem, meta={**problem.meta, "thinking": thinking})
        return self.chat.prompt(problem, thinking=thinking, system=self.ask.system)

    def some(
        self, split: Literal["train", "test"], n: int, seed: int, thinking: bool | None = None
    ) -> list[Prompt]:
        """n problems of a split, as prompts, in an order that the seed fixes; all there are where
        they are fewer.
        """
        size = self.task.size(split)
        return self.prompts(
            self.task.problems(split, n if size is None else min(n, size), seed), seed, thinking
        )

    def policy(self, source: str) -> Policy:
        """As `model`. Raises ModelError where it is a reward model."""
        found = self.model(source)
        if found.config.scalar:
            raise ModelError(f"{source} is a reward model: it scores texts and cannot write any")
        return found

    def ranked(self, source: str) -> list[Ranking]:
        """The rankings of a rank stage, a file or the Hub. Raises DataError."""
        if source not in self.rankings:
            return preferences.read(source)
        if not self.rankings[source]:
            raise DataError(f"the rank stage {source!r} found nothing to rank")
        return self.rankings[source]

    def example(self, problem: Problem, response: str, seed: int | None = None) -> Sample:
        """A document as a sample whose response, end of turn included, the policy is to choose:
        what is trained on.

        The response is the whole answer, thinking included; what the prompt has begun of it is not
        trained on, and with thinking off its thinking is left out. Raises DataError where nothing
        is left then.
        """
        prompt = self.prompts([problem], seed)[0]
        text = left(prompt, response)
        answer = self.chat.response(text)
        mask = np.concatenate([np.zeros(len(prompt.tokens), bool), np.ones(len(answer), bool)])
        return Sample(
            np.array([*prompt.tokens, *answer]), mask, np.zeros(len(mask), np.float32), text, "stop"
        )

    def stream(self, split: Literal["train", "test"]) -> Iterator[Problem]:
        return endless(self.task, split, self.seed)

"""What tasks share: options, a split by each problem's own text, and a corpus of right answers."""

import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from whet.options import Options
from whet.tasks.corpus import draw_modes, training_problems
from whet.tasks.split import Split, demand, distinct, is_test
from whet.types import Problem, Score


class TaskOptions(Options):
    """A task, whose fields are its options; `owner` is "task NAME"."""

    @property
    def name(self) -> str:
        return self.owner.removeprefix("task ")

    @property
    def modes(self) -> tuple[str, ...]:
        return ()

    def mode(self, problem: Problem, text: str) -> str:
        return "other"


class Generated(TaskOptions):
    """A task that makes its problems: it lists all of them where they are few, else draws some."""

    cure: ClassVar[str] = "ask for fewer"  # what to do where there are too few problems

    @property
    def variety(self) -> str:
        """The task and the options on which its problems depend: the seed of the draws."""
        return self.name

    @property
    def corpus_variety(self) -> str:
        return f"{self.name} corpus"

    @abstractmethod
    def listed(self) -> Iterable[str] | None:
        """Every problem as text; None where there are too many."""

    def draw(self, rng: random.Random) -> str | None:
        """One problem as text, at random; None where the draw makes no problem."""
        return None

    def in_test(self, text: str) -> bool:
        return is_test(text)

    @abstractmethod
    def alphabet(self) -> str: ...

    @abstractmethod
    def problem(self, text: str) -> Problem: ...

    @abstractmethod
    def verdict(self, problem: Problem, text: str) -> Score: ...

    @abstractmethod
    def response(self, problem: Problem, mode: str, rng: random.Random) -> str:
        """A right answer in a mode, for the corpus."""

    @cached_property
    def _pool(self) -> dict[Split, list[str]] | None:
        """Every problem of each split; None where there are too many to list."""
        texts = self.listed()
        if texts is None:
            return None
        pool: dict[Split, list[str]] = {"train": [], "test": []}
        for text in texts:
            pool["test" if self.in_test(text) else "train"].append(text)
        return pool

    def size(self, split: Split) -> int | None:
        return None if self._pool is None else len(self._pool[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        rng = random.Random(f"{self.variety} {split} {seed}")
        what, cure = f"task {self.name}: {split} problems", self.cure.format(**dict(self))

        def draw() -> str | None:
            text = self.draw(rng)
            return text if text is not None and self.in_test(text) == (split == "test") else None

        if self._pool is None:
            texts = distinct(draw, n, what, cure)
        else:
            demand(n, len(self._pool[split]), what, cure)
            texts = rng.sample(self._pool[split], n)
        return [self.problem(text) for text in texts]

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        return [self.verdict(problem, text) for problem, text in zip(problems, texts, strict=True)]

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        rng = random.Random(f"{self.corpus_variety} {seed}")
        modes = draw_modes(self, mix, n, rng)
        return [
            (problem, self.response(problem, mode, rng))
            for problem, mode in zip(training_problems(self, n, seed), modes, strict=True)
        ]

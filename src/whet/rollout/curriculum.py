"""The order of training problems: the task's own, or first those that the policy still fails on."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from whet.storage.checkpoint import Counted, State, Stateful
from whet.types import Group, Problem


class Curriculum(Stateful, Protocol):
    def draw(self, n: int) -> list[Problem]: ...

    def learn(self, groups: Sequence[Group]) -> None:
        """Takes note of the scores of the problems that were drawn."""
        ...


class InOrder(Counted[Problem]):
    def draw(self, n: int) -> list[Problem]:
        return list(islice(self, n))

    def learn(self, groups: Sequence[Group]) -> None:
        """Does nothing: the order is the task's."""


class Prioritised:
    """Problems in proportion to 1 - success, from a pool of the task's first `pool` problems.

    Kimi k1.5, arXiv:2501.12599, sec. 2.3.3. Success is the share of right answers when a problem
    was last drawn; it is 0 before. Where a draw exceeds the unsolved problems, solved ones fill it,
    all equally likely.
    """

    def __init__(self, problems: Iterator[Problem], pool: int, seed: int) -> None:
        self.pool = {p.id: p for p in islice(problems, pool)}
        self.success = dict.fromkeys(self.pool, 0.0)
        self.random = np.random.default_rng(seed)

    def draw(self, n: int) -> list[Problem]:
        """n problems, none twice unless the pool has fewer."""
        ids = list(self.pool)
        drawn: list[str] = []
        while len(drawn) < n:
            drawn += self._some(ids, min(n - len(drawn), len(ids)))
        return [self.pool[i] for i in drawn]

    def _some(self, ids: list[str], n: int) -> list[str]:
        """n ids, drawn without replacement in proportion to w: the n largest u^(1/w), u uniform."""
        weight = np.array([1 - self.success[i] for i in ids])
        keys = np.where(
            weight > 0, np.log(self.random.random(len(ids))) / np.maximum(weight, 1e-12), -np.inf
        )
        order = np.lexsort((self.random.random(len(ids)), -keys))
        return [ids[i] for i in order[:n]]

    def learn(self, groups: Sequence[Group]) -> None:
        for group in groups:
            right = [c.correct for c in group.usable.scores]
            if right and group.prompt.id in self.success:
                self.success[group.prompt.id] = sum(right) / len(right)

    def state(self) -> State:
        return State(data={"success": self.success, "random": self.random.bit_generator.state})

    def restore(self, state: State) -> None:
        self.success = dict(state.data["success"])
        self.random.bit_generator.state = state.data["random"]

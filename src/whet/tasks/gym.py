"""Any reasoning-gym data set, as `gym:NAME`. Worker processes make questions and score answers.

Score.value is reasoning-gym's own score, which for many data sets gives partial credit.
`parts["accuracy"]`, which accuracy counts, is 1 from a score of .99 on, else 0. With `partial =
false` the value is the accuracy.
"""

import hashlib
import json
import os
import random
import re
import string
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr

from whet.errors import DataError
from whet.sandbox.pool import Pool, Result
from whet.tasks.base import TaskOptions
from whet.tasks.corpus import refuse_mix, training_problems
from whet.tasks.split import Split, demand, is_test
from whet.types import Problem, Score

REFUSED = {
    **dict.fromkeys(
        ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"),
        "it has no reference answer that its own scorer accepts",
    ),
    **dict.fromkeys(
        ("codeio", "list_functions"), "its questions cannot be made again from the same seed"
    ),
    "game_of_life_halting": "its scorer pays 1.0 for any text",
    "complex_arithmetic": "its scorer pays 1.0 for 'nan'",
    "puzzle24": "its scorer pays 1.0 for 24 made from any four numbers; use the task countdown",
    "composite": "it only combines other data sets; name one of them",
}
PAID_FOR_JUNK = {
    "coin_flip": "the answer '0' is paid 0.9",
    "polynomial_equations": "the answer '0' is paid up to 0.5",
    "spell_backward": "a wrong word is paid for each letter that happens to stand right",
}
SLOW = {"futoshiki": 320, "knight_swap": 350, "sokoban": 70, "zebra_puzzles": 90}  # ms a question
TEST_SHARE = 0.25  # of the questions; a smaller share takes longer to make as many test problems
BLOCK = 64  # questions of one seed, made by one order to a worker
# questions in a row without a new one before a data set counts as exhausted; more where it is large
PATIENCE = 2_000
KEPT = 8  # sets of questions that are remembered
SCORE_SECONDS = 2.0  # an answer
MAKE_SECONDS = 120.0  # a block
MAX_ANSWER = 10_000  # characters that a scorer is asked to read
CORRECT = 0.99
ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)


def extract(text: str) -> str | None:
    """The answer within a response: the last <answer>…</answer> after the thinking, else all of it.

    None where the thinking never ends.

    >>> extract("<think>2+2</think> so <answer> 4 </answer>."), extract("<think>hm</think>4")
    ('4', '4')
    >>> extract("<think>hm")
    """
    _, end, rest = text.rpartition("</think>")
    if not end:
        if "<think>" in text:
            return None
        rest = text
    tagged = ANSWER.findall(rest)
    return (tagged[-1] if tagged else rest).strip() or None


def datasets() -> list[str]:
    """The names that `gym:NAME` accepts. Starts a worker, which takes a few seconds."""
    names = _value(_workers(MAKE_SECONDS).map([{"do": "names"}])[0], "reasoning-gym")
    return [name for name in names if name not in REFUSED]


@cache
def _workers(seconds: float) -> Pool:
    """One pool for all tasks, as its imports take seconds.

    The hash seed is fixed, because some data sets iterate over sets of strings.
    """
    processes = max(1, min(8, os.cpu_count() or 1))
    return Pool("whet.tasks.gym_worker:serve", processes, seconds, env={"PYTHONHASHSEED": "0"})


class Gym(TaskOptions):
    """A data set of reasoning-gym. Every option but these is the data set's own (`min_terms = 2`).

    Questions are made as needed, without end, or `pool` of them once. The split hashes the
    question. Raises RecipeError for an unknown data set, one whose scorer cannot be trusted, and
    for its options.
    """

    model_config = ConfigDict(extra="allow")
    owner = "task gym:{dataset}"
    dataset: str = Field(description="reasoning-gym's name of the data set")
    pool: int | None = Field(
        default=None, ge=1, description="make so many questions once; default: as many as needed"
    )
    partial: bool = Field(
        default=True, description="pay reasoning-gym's partial credit; false: 1 or 0"
    )
    _made: dict[tuple[Split, int, int], list[Problem]] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        if self.dataset in REFUSED:
            raise ValueError(f"it is refused: {REFUSED[self.dataset]}")
        if self.partial and self.dataset in PAID_FOR_JUNK:
            raise ValueError(f"{PAID_FOR_JUNK[self.dataset]}; set partial = false")
        if self.dataset in SLOW and self.pool is None:
            raise ValueError(
                f"it takes {SLOW[self.dataset]} ms a question; set pool = 500 to make 500 once"
            )
        fault = _value(self._maker.map([self._order("check")])[0], self.name)
        if fault:
            raise ValueError(fault)

    @property
    def name(self) -> str:
        return f"gym:{self.dataset}"

    @property
    def _maker(self) -> Pool:
        return _workers(MAKE_SECONDS)

    @property
    def _scorer(self) -> Pool:
        """A scorer makes its question again, so that of a slow data set needs a maker's time."""
        return _workers(MAKE_SECONDS if self.dataset in SLOW else SCORE_SECONDS)

    def _order(self, do: str, **more: Any) -> dict[str, Any]:
        return {"do": do, "name": self.dataset, "config": self.model_extra, **more}

    def size(self, split: Split) -> int | None:
        return None if self.pool is None else len(self._fixed[split])

    @cached_property
    def _fixed(self) -> dict[Split, list[Problem]]:
        """The `pool` questions, by split."""
        by_split: dict[Split, list[Problem]] = {"train": [], "test": []}
        for problem in self._make(None, self.pool or 0, 0):
            by_split["test" if is_test(problem.question, TEST_SHARE) else "train"].append(problem)
        return by_split

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        if self.pool is not None:
            have = self._fixed[split]
            demand(n, len(have), f"task {self.name}: {split} problems", f"raise pool = {self.pool}")
            return random.Random(f"{self.name} {split} {seed}").sample(have, n)
        key = (split, n, seed)
        if key not in self._made:  # the same test problems are asked for again and again
            while len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = self._make(split, n, seed)
        return list(self._made[key])

    def _make(self, split: Split | None, n: int, seed: int) -> list[Problem]:
        """The first n different questions of a split in the seed's sequence; None: of both splits."""
        share = {"train": 1 - TEST_SHARE, "test": TEST_SHARE, None: 1.0}[split]
        problems: dict[str, Problem] = {}
        block = misses = 0
        while len(problems) < n:
            blocks = max(1, round((n - len(problems)) / (share * BLOCK)))
            seeds = [self._block_seed(seed, block + i) for i in range(blocks)]
            block += blocks
            orders = [self._order("make", seed=s, count=BLOCK) for s in seeds]
            for block_seed, result in zip(seeds, self._maker.map(orders), strict=True):
                for index, question, answer in _value(result, self.name):
                    new = question not in problems and (
                        split is None or is_test(question, TEST_SHARE) == (split == "test")
                    )
                    misses = 0 if new else misses + 1
                    if new and len(problems) < n:
                        problems[question] = self._problem(question, answer, block_seed, index)
            if len(problems) < n and misses > PATIENCE + 2 * len(problems):
                what, cure = "questions", "lower pool"
                if split:
                    what = f"{split} questions"
                    cure = "widen its options, or set pool to use the same ones again and again"
                raise DataError(
                    f"task {self.name}: {n} {what} asked for, "
                    f"but only {len(problems)} were found; {cure}"
                )
        return list(problems.values())

    def _block_seed(self, seed: int, block: int) -> int:
        """reasoning-gym seeds question i with seed + i, so blocks must lie far apart."""
        text = json.dumps([self.dataset, self.model_extra, seed, block], sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1

    def _problem(self, question: str, answer: str, seed: int, index: int) -> Problem:
        return Problem(
            id=f"{self.name}:{hashlib.sha256(question.encode()).hexdigest()[:16]}",
            messages=({"role": "user", "content": question},),
            answer=answer,
            task=self.name,
            meta={"seed": seed, "index": index},
        )

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """reasoning-gym's score of each answer; `timeout` and `error` where its scorer failed."""
        scores: dict[int, Score] = {}
        orders: dict[int, dict[str, Any]] = {}
        for i, (problem, text) in enumerate(zip(problems, texts, strict=True)):
            answer = extract(text)
            if answer is None or len(answer) > MAX_ANSWER:
                scores[i] = _UNPARSED
            else:
                meta = problem.meta
                orders[i] = self._order(
                    "score", seed=meta["seed"], index=meta["index"], text=answer
                )
        for i, result in zip(orders, self._scorer.map(list(orders.values())), strict=True):
            scores[i] = self._verdict(result)
        return [scores[i] for i in range(len(texts))]

    def _verdict(self, result: Result) -> Score:
        if result.status != "ok":
            return Score(0.0, result.status, reason=result.message)
        if result.value is None:
            return _UNPARSED
        accuracy = float(result.value >= CORRECT)
        value = result.value if self.partial else accuracy
        return Score(value, "scored" if accuracy else "wrong", {"accuracy": accuracy})

    def alphabet(self) -> str:
        """The characters of 512 training questions and answers.

        Of the digits, and of each case of letters, all or none.
        """
        size = self.size("train")
        sample = self.problems("train", 512 if size is None else size, 0)
        seen = {character for p in sample for character in p.question + (p.answer or "")}
        for family in (string.digits, string.ascii_lowercase, string.ascii_uppercase):
            if seen & set(family):
                seen |= set(family)
        return "".join(sorted(seen))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        """The reference answers, without thinking: reasoning-gym has no worked solutions."""
        refuse_mix(self, mix)
        return [(p, f"<think></think>{p.answer}") for p in training_problems(self, n, seed)]


_UNPARSED = Score(0.0, "unparsed", {"accuracy": 0.0})


def _value(result: Result, name: str) -> Any:
    if result.status != "ok":
        raise DataError(f"task {name}: reasoning-gym failed ({result.status}): {result.message}")
    return result.value

"""A task from a JSONL or Parquet file, or a data set on the Hub, with named columns.

[task]
name = "files"
path = "gsm8k/train.jsonl"
test = "gsm8k/test.jsonl"
answer_after = "####"
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from whet.data.rows import ROLES, Row, read_rows, thinking_of
from whet.data.sources import sources
from whet.errors import DataError
from whet.rewards import Reward
from whet.rewards import load as load_reward
from whet.tasks.base import TaskOptions
from whet.tasks.corpus import refuse_mix, training_problems
from whet.tasks.split import Split, demand, is_test
from whet.types import Message, Problem, Score


class Files(TaskOptions):
    """Questions with their answers, or with responses to learn from, or both.

    A row whose column `thinking` is true or false is asked with the chat template's switch so. A
    question that is in the test split too is removed from train, and a repeated one is kept once;
    `note` says how many. Raises DataError and RecipeError, in one line, for what is missing, broken
    or contradicts itself.
    """

    owner = "task files"
    path: str = Field(description="a .jsonl or .parquet file, or hf:OWNER/NAME")
    test: str = Field(
        default="",
        description="file of the test problems; default: the Hub's, or test_share of the questions",
    )
    question: str = Field(default="question", description="column of the questions")
    answer: str = Field(
        default="answer", description='column of the answers; "": the data has none'
    )
    messages: str = Field(
        default="",
        description="column of conversations, [{role, content}, …], in place of question; their "
        "last message, the assistant's, is the response",
    )
    response: str = Field(default="", description="column of the responses that the corpus teaches")
    answer_after: str = Field(
        default="", description="the answer is what follows the last of this text in its column"
    )
    answer_pattern: str = Field(
        default="",
        description="the answer is the last match of this regular expression, or its group 1",
    )
    system: str = Field(default="", description="system message before every question")
    reward: str = Field(default="math", description="reward that verifies responses")
    test_share: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="share of the questions that are the test split, by a hash of the question, "
        "where no file is",
    )
    _responses: dict[str, str] = PrivateAttr(default_factory=dict[str, str])
    _splits: dict[Split, list[Problem]] = PrivateAttr()
    _note: str = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        if self.answer_after and self.answer_pattern:
            raise ValueError("answer_after and answer_pattern are both given; drop one")
        if self.messages and self.response:
            raise ValueError("messages bring their own response; drop response")
        try:
            _ = self._pattern
        except re.error as error:
            raise ValueError(f"answer_pattern is no regular expression ({error})") from None
        train, test = sources(self.path)
        if self.test:
            test = [file for part in sources(self.test) for file in part]
        self._splits, self._note = self._separate(
            self._load(train), self._load(test) if test else None
        )

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.answer_pattern, re.DOTALL)

    @property
    def note(self) -> str:
        """What was removed from the data, in words."""
        return self._note

    def _load(self, files: Sequence[Path]) -> list[Problem]:
        columns = [c for c in (self.messages or self.question, self.answer, self.response) if c]
        rows = [row for file in files for row in read_rows(file, columns, ["thinking"])]
        lacking: dict[str, list[str]] = {}
        problems: list[Problem] = []
        for row in rows:
            messages, response = self._conversation(row) if self.messages else self._single(row)
            answer = self._answer(row) if self.answer else None
            for what, missing in (
                ("question", not messages),
                (self._answer_words, bool(self.answer) and answer is None),
                ("response", bool(self.response) and response is None),
            ):
                if missing:
                    lacking.setdefault(what, []).append(row.where)
            problems.append(self._problem(messages, answer, response, thinking_of(row.values)))
        for what, places in lacking.items():
            raise DataError(
                f"{len(places)} of {len(rows)} rows have no {what}; the first is {places[0]}"
            )
        return problems

    @property
    def _answer_words(self) -> str:
        if self.answer_after:
            return f"answer (nothing after {self.answer_after!r} in column {self.answer!r})"
        return (
            f"answer (answer_pattern finds none in column {self.answer!r})"
            if self.answer_pattern
            else "answer"
        )

    def _single(self, row: Row) -> tuple[list[Message], str | None]:
        question = row.text(self.question)
        messages = [] if question is None else [{"role": "user", "content": question}]
        return messages, row.text(self.response) if self.response else None

    def _conversation(self, row: Row) -> tuple[list[Message], str | None]:
        """The messages up to the last of the assistant's, and that one."""
        messages = row.messages(self.messages)
        if messages is None:
            raise DataError(
                f"{row.where}: column {self.messages!r} must be a list of {{role, content}} "
                f"with roles {', '.join(ROLES)}"
            )
        last = None
        if messages and messages[-1]["role"] == "assistant":
            last = messages.pop()["content"]
        if last is None and not self.answer:
            raise DataError(
                f"{row.where}: the messages do not end with the assistant's, "
                "so there is nothing to learn"
            )
        return messages, last

    def _answer(self, row: Row) -> str | None:
        text = row.text(self.answer)
        if text is not None and self.answer_after:
            _, mark, text = text.rpartition(self.answer_after)
            text = text if mark else ""
        elif text is not None and self.answer_pattern:
            matches = list(self._pattern.finditer(text))
            text = (matches[-1].group(1 if self._pattern.groups else 0) or "") if matches else ""
        return (text or "").strip() or None

    def _problem(
        self,
        messages: list[Message],
        answer: str | None,
        response: str | None,
        meta: Mapping[str, bool],
    ) -> Problem:
        if self.system:
            messages = [{"role": "system", "content": self.system}, *messages]
        suffix = "".join(f"@{'on' if thinking else 'off'}" for thinking in meta.values())
        problem = Problem(
            f"{self.name}:{_digest(_key(messages))}{suffix}",
            tuple(messages),
            answer,
            self.name,
            meta,
        )
        if response is not None:
            self._responses.setdefault(problem.id, response)
        return problem

    def _separate(
        self, train: list[Problem], test: list[Problem] | None
    ) -> tuple[dict[Split, list[Problem]], str]:
        """(the splits, each question in one of them and once; what was removed, in words)."""
        total = len(train) + len(test or [])
        if test is None:
            test = [p for p in train if is_test(_key(p.messages), self.test_share)]
            train = [p for p in train if not is_test(_key(p.messages), self.test_share)]
        tests = {_key(p.messages): p for p in reversed(test)}
        different = {p.id: p for p in reversed(train)}
        trains = [p for p in different.values() if _key(p.messages) not in tests]
        shared = len(different) - len(trains)
        repeated = total - len(tests) - len(different)
        splits: dict[Split, list[Problem]] = {
            "train": sorted(trains, key=lambda p: p.id),
            "test": sorted(tests.values(), key=lambda p: p.id),
        }
        notes: list[str] = []
        if shared:
            notes.append(
                f"{shared} training questions are in the test file too and were removed from train"
            )
        if repeated:
            notes.append(f"{repeated} repeated questions were removed")
        return splits, "; ".join(notes)

    def size(self, split: Split) -> int | None:
        return len(self._splits[split])

    def problems(self, split: Split, n: int, seed: int) -> list[Problem]:
        have = self._splits[split]
        cure = (
            "ask for fewer" if have or split == "train" else "name a test file, or raise test_share"
        )
        demand(n, len(have), f"task files: {split} problems of {self.path}", cure)
        return random.Random(f"files {split} {seed}").sample(have, n)

    @cached_property
    def _verifier(self) -> Reward:
        return load_reward(self.reward)

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        """The scores of `reward`. Raises DataError where the data has no answers to compare with."""
        if not self.answer:
            raise DataError(
                'task files: answer = "", so nothing can be verified; '
                "name the column of the answers"
            )
        return self._verifier.score(problems, texts)

    def alphabet(self) -> str:
        problems = [p for split in self._splits.values() for p in split]
        texts = [m["content"] for p in problems for m in p.messages]
        texts += [p.answer or "" for p in problems]
        return "".join(sorted(set().union(*texts, *self._responses.values())))

    def corpus(self, mix: Mapping[str, float], n: int, seed: int) -> list[tuple[Problem, str]]:
        refuse_mix(self, mix)
        problems = training_problems(self, n, seed)
        if not all(p.id in self._responses for p in problems):
            raise DataError(
                "task files: there are no responses to learn from; "
                "name their column: response, or messages"
            )
        return [(p, self._responses[p.id]) for p in problems]


def _key(messages: Sequence[Message]) -> str:
    """The words of a question: those with the same words, in any case and spacing, are the same."""
    text = "\n".join(f"{m['role']}: {m['content']}" for m in messages if m["role"] != "system")
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

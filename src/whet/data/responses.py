"""Verified responses as rows of a JSONL file: a conversation each, as a reject stage keeps them."""

import json
from collections.abc import Sequence
from pathlib import Path

from whet.data.rows import read_rows, thinking_of
from whet.errors import DataError
from whet.types import Problem


def write(responses: Sequence[tuple[Problem, str]], path: Path) -> None:
    """One conversation a line; `read` and the task `files` (messages = "messages") read them."""
    with path.open("w", encoding="utf-8") as file:
        for problem, text in responses:
            row = {
                "id": problem.id,
                "messages": [*problem.messages, {"role": "assistant", "content": text}],
                "answer": problem.answer,
                "task": problem.task,
            }
            file.write(json.dumps(row | thinking_of(problem.meta)) + "\n")


def read(path: Path) -> list[tuple[Problem, str]]:
    """The (problem, response) pairs of a file. Raises DataError for a row that is not whole."""
    responses: list[tuple[Problem, str]] = []
    for row in read_rows(path, ["id", "messages"]):
        values, messages = row.values, row.values["messages"]
        if not isinstance(messages, list) or len(messages) < 2:
            raise DataError(f"{row.where}: messages must be a prompt and a response")
        problem = Problem(
            str(values["id"]),
            tuple(messages[:-1]),
            row.text("answer"),
            str(values.get("task", "")),
            thinking_of(values),
        )
        responses.append((problem, messages[-1]["content"]))
    return responses

"""Ranked responses, from a rank stage, a file or the Hub, and the batches of a loss over pairs."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whet.algorithms.batch import RankedBatch, pack
from whet.data.rows import Row, read_rows, thinking_of
from whet.data.sources import sources
from whet.errors import DataError
from whet.types import Message, Problem, Ranking, Sample


def read(source: str) -> list[Ranking]:
    """The rankings of a JSONL or Parquet file, or of the training files of `hf:OWNER/NAME`.

    A row has `prompt` (a text, or messages) and `ranked` (responses, best first), or `chosen` and
    `rejected`. Where those are whole conversations, as on the Hub, `prompt` may be absent. Pairs
    whose sides are equal are left out. Raises DataError, which names the row, for a column that is
    missing or of another form, and where nothing is left.
    """
    rows = [row for file in sources(source)[0] for row in read_rows(file, None)]
    rankings = [ranking for row in rows if (ranking := of_row(row)) is not None]
    if not rankings:
        raise DataError(f"{source}: no row ranks two different responses")
    return rankings


def of_row(row: Row) -> Ranking | None:
    """The ranking in one row; None where its responses are all the same."""
    if "ranked" in row.values:
        prompt, texts = _messages(row, "prompt"), row.values["ranked"]
        if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise DataError(f"{row.where}: column 'ranked' must be a list of texts, best first")
    else:
        prompt, texts = _pair(row)
    different = tuple(dict.fromkeys(texts))
    if not prompt or prompt[-1]["role"] == "assistant":
        raise DataError(f"{row.where}: no prompt before the responses")
    problem = Problem(
        str(row.values.get("id") or row.where),
        tuple(prompt),
        row.text("answer"),
        meta=thinking_of(row.values),
    )
    return Ranking(problem, different) if len(different) > 1 else None


def _pair(row: Row) -> tuple[list[Message], list[str]]:
    prompt: list[Message] = _messages(row, "prompt") if row.values.get("prompt") is not None else []
    texts = []
    for column in ("chosen", "rejected"):
        cell = row.values.get(column)
        if isinstance(cell, str):
            texts.append(cell)
            continue
        conversation = _messages(row, column)
        if not conversation or conversation[-1]["role"] != "assistant":
            raise DataError(
                f"{row.where}: column {column!r} does not end with the assistant's message"
            )
        texts.append(conversation.pop()["content"])
        prompt = prompt or conversation
    return prompt, texts


def _messages(row: Row, column: str) -> list[Message]:
    cell: Any = row.values.get(column)
    if isinstance(cell, str) and cell.strip():
        return [{"role": "user", "content": cell}]
    messages = row.messages(column)
    if messages is None:
        raise DataError(
            f"{row.where}: column {column!r} must be a text, or a list of {{role, content}}"
        )
    return messages


def write(rankings: Sequence[Ranking], path: Path) -> None:
    """Writes rankings as `read` reads them."""
    with path.open("w", encoding="utf-8") as file:
        for ranking in rankings:
            problem = ranking.problem
            line: dict[str, Any] = {
                "id": problem.id,
                "prompt": list(problem.messages),
                "ranked": list(ranking.texts),
                **thinking_of(problem.meta),
            }
            if problem.answer is not None:
                line["answer"] = problem.answer
            file.write(json.dumps(line) + "\n")


def split(
    rankings: Sequence[Ranking], share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """(for training, held out): `share` of the prompts is held out, at least one.

    No prompt is on both sides. Raises DataError where there is only one prompt.
    """
    prompts = sorted({json.dumps(r.problem.messages) for r in rankings})
    if len(prompts) < 2:
        raise DataError(
            "there is only one prompt with ranked responses; "
            "a reward model needs others to be measured on"
        )
    random.Random(seed).shuffle(prompts)
    held_out = set(prompts[: max(1, round(share * len(prompts)))])
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        sides[json.dumps(ranking.problem.messages) in held_out].append(ranking)
    return sides


def epochs(rankings: Sequence[Ranking], batch: int, seed: int) -> Iterator[list[Ranking]]:
    """Batches without end, each epoch in an order of its own.

    A batch has no ranking twice unless there are fewer rankings than its size.
    """
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting += rng.permutation(len(rankings)).tolist()
        taken, waiting = waiting[:batch], waiting[batch:]
        yield [rankings[i] for i in taken]


def ranked_batch(examples: Sequence[Sequence[Sample]]) -> RankedBatch:
    """One batch of R rankings, each given as its K samples from best to worst.

    A sample's mask says which tokens the loss reads. A token's weight is 1 / (R x the tokens of its
    sample), so that the loss is a mean over rankings.
    """
    flat = [sample for ranked in examples for sample in ranked]
    weights = [1 / (len(examples) * max(sample.length, 1)) for sample in flat]
    packed = pack(flat, [0.0] * len(flat), weights)
    group = torch.tensor([i for i, ranked in enumerate(examples) for _ in ranked])
    rank = torch.tensor([k for ranked in examples for k in range(len(ranked))])
    layout = {
        name: getattr(packed, name)
        for name in ("tokens", "positions", "starts", "chosen", "sequence", "weight")
    }
    return RankedBatch(
        **layout,
        group=group[packed.sequence],
        rank=rank[packed.sequence],
        reference=torch.zeros_like(packed.weight),
    )

"""Ranked responses: from a rank stage, a file or the Hub; as batches that a loss over pairs reads."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from whet.algorithms.batch import RankedBatch, pack
from whet.data.rows import Row, asked, read_rows
from whet.data.sources import ROLES, sources
from whet.errors import DataError
from whet.types import Message, Problem, Ranking, Sample


def read(source: str) -> list[Ranking]:
    """The rankings of a JSONL or Parquet file, or of a data set on the Hub (`hf:OWNER/NAME`, its
    training files).

    A row has `prompt` (a text, or messages) and `ranked` (responses, best first), or `chosen` and
    `rejected`; where those are whole conversations, as on the Hub, `prompt` may be absent. Pairs
    whose sides are equal are left out. Raises DataError, naming the row, for what is missing or of
    another form, and where nothing is left.
    """
    rows = [row for file in sources(source)[0] for row in read_rows(file, None)]
    found = [ranking for row in rows if (ranking := of_row(row)) is not None]
    if not found:
        raise DataError(f"{source}: no row ranks two different responses")
    return found


def of_row(row: Row) -> Ranking | None:
    """One row; None where its responses are all the same."""
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
        meta=asked(row.values),
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
        said = _messages(row, column)
        if not said or said[-1]["role"] != "assistant":
            raise DataError(
                f"{row.where}: column {column!r} does not end with the assistant's message"
            )
        texts.append(said.pop()["content"])
        prompt = prompt or said
    return prompt, texts


def _messages(row: Row, column: str) -> list[Message]:
    cell: Any = row.values.get(column)
    if isinstance(cell, str) and cell.strip():
        return [{"role": "user", "content": cell}]
    if not isinstance(cell, list) or not all(
        isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str)
        for m in cell
    ):
        raise DataError(
            f"{row.where}: column {column!r} must be a text, or a list of {{role, content}}"
        )
    return [{"role": m["role"], "content": m["content"]} for m in cell]


def write(rankings: Sequence[Ranking], path: Path) -> None:
    """As `read` reads them."""
    with path.open("w", encoding="utf-8") as file:
        for ranking in rankings:
            problem = ranking.problem
            line = {
                "id": problem.id,
                "prompt": list(problem.messages),
                "ranked": list(ranking.texts),
            } | asked(problem.meta)
            file.write(
                json.dumps(line if problem.answer is None else {**line, "answer": problem.answer})
                + "\n"
            )


def split(
    rankings: Sequence[Ranking], share: float, seed: int
) -> tuple[list[Ranking], list[Ranking]]:
    """(for training, held out): `share` of the prompts, at least one, and no prompt on both sides.
    Raises DataError where there is only one.
    """
    prompts = sorted({json.dumps(r.problem.messages) for r in rankings})
    if len(prompts) < 2:
        raise DataError(
            "there is only one prompt with ranked responses; a reward model needs others to be measured on"
        )
    random.Random(seed).shuffle(prompts)
    held = set(prompts[: max(1, round(share * len(prompts)))])
    sides: tuple[list[Ranking], list[Ranking]] = ([], [])
    for ranking in rankings:
        sides[json.dumps(ranking.problem.messages) in held].append(ranking)
    return sides


def epochs(rankings: Sequence[Ranking], batch: int, seed: int) -> Iterator[list[Ranking]]:
    """Batches without end: each epoch in an order of its own, a batch never with a ranking twice
    unless there are too few.
    """
    rng = np.random.default_rng(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch:
            waiting += rng.permutation(len(rankings)).tolist()
        taken, waiting = waiting[:batch], waiting[batch:]
        yield [rankings[i] for i in taken]


def ranked_batch(examples: Sequence[Sequence[Sample]]) -> RankedBatch:
    """R rankings, each as its K samples from best to worst -> one batch.

    A sample's mask says which tokens the loss reads. Weights make the loss the mean over rankings,
    a sequence's part of it shared out over its tokens.
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

"""Sampling one step ahead of training: the next samples are drawn while the last are scored."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whet.rewards import Reward
from whet.rollout.rollout import score_groups
from whet.storage.checkpoint import State
from whet.types import Group, Problem, Prompt, Sample

Drawn = tuple[list[Prompt], list[tuple[Sample, ...]]]
ARRAYS = ("tokens", "mask", "logp")
PLAIN = ("text", "finish", "version")  # the other fields of a sample


class OneStepAhead:
    """The samples of the next step (one step off policy: arXiv:2410.18252).

    They are part of the run's state: a checkpoint holds them.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.waiting: Drawn | None = None

    def take(self, step: int, steps: int, draw: Callable[[int], Drawn]) -> list[Group]:
        """The scored samples of `step`; `draw(step + 1)` draws the next ones meanwhile.

        The first step draws its own samples first; the last step draws no next ones.
        """
        prompts, samples = self.waiting or draw(step)
        with ThreadPoolExecutor(1) as scorer:
            scored = scorer.submit(score_groups, self.reward, prompts, samples)
            self.waiting = None if step == steps else draw(step + 1)
            return scored.result()

    def state(self) -> State:
        prompts, drawn = self.waiting or ([], [])
        flat = [s for samples in drawn for s in samples]
        tensors: dict[str, Tensor] = {}
        for name in ARRAYS if flat else ():
            tensors[name] = torch.from_numpy(np.concatenate([getattr(s, name) for s in flat]))
        data = {
            # a problem as text: JSON sorts the keys of a table, and their order goes into the log
            "prompts": [
                {"problem": json.dumps(asdict(p.problem)), "tokens": p.tokens, "begun": p.begun}
                for p in prompts
            ],
            "samples": [
                {"length": len(s.tokens), **{name: getattr(s, name) for name in PLAIN}}
                for s in flat
            ],
            "group": len(drawn[0]) if drawn else 0,
        }
        return State(tensors, data)

    def restore(self, state: State) -> None:
        begin, flat = 0, list[Sample]()
        for row in state.data["samples"]:
            end = begin + row["length"]
            arrays = {name: state.tensors[name][begin:end].numpy().copy() for name in ARRAYS}
            flat.append(Sample(**arrays, **{name: row[name] for name in PLAIN}))
            begin = end
        prompts, size = [_prompt(row) for row in state.data["prompts"]], state.data["group"]
        groups = [tuple(flat[i : i + size]) for i in range(0, len(flat), size or 1)]
        self.waiting = (prompts, groups) if prompts else None


def _prompt(row: dict[str, Any]) -> Prompt:
    problem = json.loads(row["problem"])
    messages = tuple(problem.pop("messages"))
    return Prompt(Problem(messages=messages, **problem), tuple(row["tokens"]), row["begun"])

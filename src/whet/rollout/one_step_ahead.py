"""Samples drawn a step before they are trained on: the next ones are drawn while the last are
scored.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from whet.rewards import Reward
from whet.rollout.rollout import score_groups
from whet.storage.checkpoint import State
from whet.types import Group, Problem, Prompt, Sample

Drawn = tuple[list[Prompt], list[tuple[Sample, ...]]]
ARRAYS = ("tokens", "mask", "logp")


class Flight:
    """One step's samples in flight (arXiv:2410.18252: one step off policy). They stay with the run:
    a checkpoint holds them.
    """

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.waiting: Drawn | None = None

    def take(self, step: int, steps: int, draw: Callable[[int], Drawn]) -> list[Group]:
        """The samples of `step`, scored while `draw(step + 1)` draws the next. The first step draws
        its own, the last no more.
        """
        prompts, samples = self.waiting or draw(step)
        with ThreadPoolExecutor(1) as scorer:
            scored = scorer.submit(score_groups, self.reward, prompts, samples)
            self.waiting = None if step == steps else draw(step + 1)
            return scored.result()

    def state(self) -> State:
        prompts, drawn = self.waiting or ([], [])
        tensors: dict[str, Tensor] = {}
        flat = [s for samples in drawn for s in samples]
        for name in ARRAYS:
            arrays = [getattr(s, name) for s in flat]
            tensors |= {name: torch.from_numpy(np.concatenate(arrays))} if arrays else {}
        # As text: the order of its keys goes into the log.
        told = [
            {"problem": json.dumps(asdict(p.problem)), "tokens": list(p.tokens), "begun": p.begun}
            for p in prompts
        ]
        others = [
            {
                "length": len(s.tokens),
                "text": s.text,
                "finish": s.finish,
                "version": s.version,
                "turns": s.turns,
            }
            for s in flat
        ]
        return State(
            tensors, {"prompts": told, "samples": others, "group": len(drawn[0]) if drawn else 0}
        )

    def restore(self, state: State) -> None:
        told, at, flat = state.data, 0, list[Sample]()
        for held in told["samples"]:
            one = dict(held)
            length = one.pop("length")
            arrays = {name: state.tensors[name][at : at + length].numpy().copy() for name in ARRAYS}
            flat.append(Sample(**arrays, **one))
            at += length
        prompts = [_prompt(p) for p in told["prompts"]]
        size = told["group"]
        self.waiting = (prompts, _grouped(flat, size)) if prompts else None


def _grouped(flat: Sequence[Sample], size: int) -> list[tuple[Sample, ...]]:
    return [tuple(flat[i : i + size]) for i in range(0, len(flat), size)]


def _prompt(told: dict[str, object]) -> Prompt:
    held, tokens, begun = told["problem"], told["tokens"], told["begun"]
    assert isinstance(held, str) and isinstance(tokens, list) and isinstance(begun, str)
    problem = json.loads(held)
    return Prompt(
        Problem(**{**problem, "messages": tuple(problem["messages"])}), tuple(tokens), begun
    )

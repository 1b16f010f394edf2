"""Learning from ranked responses: the step that reward models and DPO share."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from whet.algorithms.batch import RankedBatch
from whet.algorithms.losses import bradley_terry, pairs
from whet.training.learner import Learner, Model


def learn_rankings(
    learner: Learner[Model],
    batch: RankedBatch,
    micro_tokens: int,
    reward_of: Callable[[RankedBatch], Float[Tensor, " s"]],
) -> tuple[dict[str, float], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """One optimizer step on the Bradley-Terry loss of `reward_of(micro)`, a reward per response.

    Returns the step's figures, with the share of pairs in the right order, and the rewards of the
    better and of the worse response of all P pairs.
    """
    rewards: list[tuple[Tensor, Tensor]] = []
    for micro in batch.split(micro_tokens):
        reward = reward_of(micro)
        group, rank = micro.of_sequence(micro.group), micro.of_sequence(micro.rank)
        better, worse = pairs(group, rank)
        rewards.append((reward[better].detach(), reward[worse].detach()))
        loss = bradley_terry(reward, group, rank)[micro.sequence]
        learner.backward((loss * micro.weight).sum())
    step = learner.step()
    better, worse = (torch.cat(side) for side in zip(*rewards, strict=True))
    right = float((better > worse).double().mean())
    return {**step.figures, "lr": step.lr, "pairs_right": right}, better, worse

"""Learning from ranked responses: the step that reward models and DPO share."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from whet.algorithms.batch import RankedBatch
from whet.algorithms.losses import bradley_terry, pairs
from whet.training.learner import Learner
from whet.training.loop import Model, learn


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

    def loss_of(micro: RankedBatch) -> Float[Tensor, " m"]:
        reward = reward_of(micro)
        group, rank = micro.of_sequence(micro.group), micro.of_sequence(micro.rank)
        better, worse = pairs(group, rank)
        rewards.append((reward[better].detach(), reward[worse].detach()))
        return bradley_terry(reward, group, rank)[micro.sequence]

    figures = learn(learner, batch, micro_tokens, loss_of)
    better, worse = (torch.cat(side) for side in zip(*rewards, strict=True))
    return {**figures, "pairs_right": float((better > worse).double().mean())}, better, worse

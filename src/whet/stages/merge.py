"""The weighted average of several models' weights (long2short by merging: Kimi k1.5,
arXiv:2501.12599, sec. 2.4).
"""

import torch

from whet import config
from whet.errors import ModelError
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.rollout.context import Context


def run(policy: Policy, stage: config.Merge, context: Context) -> None:
    """Overwrites `policy` with the average. Raises ModelError where the models are not of one
    shape.
    """
    adapt(policy, None)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in policy.named_parameters()}
    first = next(iter(stage.models))
    for source, share in stage.models.items():
        other = context.policy(source)
        adapt(other, None)
        held = dict(other.named_parameters())
        if {n: p.shape for n, p in held.items()} != {n: p.shape for n, p in sums.items()}:
            raise ModelError(
                f"stage {stage.name}: {source} and {first} have weights of different shapes"
            )
        for name, total in sums.items():
            total += share * held[name].detach().double()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p.copy_(sums[name])

"""Model merging: the weighted average of several models' weights.

It is long2short by merging in Kimi k1.5, arXiv:2501.12599, sec. 2.4.
"""

import torch

from whet import config
from whet.errors import ModelError
from whet.model.lora import adapt
from whet.model.policy import Policy
from whet.rollout.context import Context


def run(policy: Policy, stage: config.Merge, context: Context) -> None:
    """Overwrites `policy` with the average. Raises ModelError for models of different shapes."""
    adapt(policy, None)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in policy.named_parameters()}
    first = next(iter(stage.models))
    for source, share in stage.models.items():
        other = context.policy(source)
        adapt(other, None)
        weights = dict(other.named_parameters())
        if {n: p.shape for n, p in weights.items()} != {n: p.shape for n, p in sums.items()}:
            raise ModelError(
                f"stage {stage.name}: {source} and {first} have weights of different shapes"
            )
        for name, total in sums.items():
            total += share * weights[name].detach().double()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p.copy_(sums[name])

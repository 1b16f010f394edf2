"""ONE TABLE: every algorithm a row of choices, so that their differences are read at a glance.

A row decides: where the advantage comes from, whether and how the importance ratio is clipped, how
tokens are weighted against one another, which KL holds the policy near its reference, and which
groups are trained on. Cells that a row does not name hold the defaults of `Algorithm`.
"""

from collections.abc import Mapping
from typing import Any

from whet.algorithms.algorithm import Algorithm, Critic
from whet.errors import RecipeError, did_you_mean

TABLE: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm(name="reinforce", source="Williams 1992", advantage="batch_centred",
                  ratio="none", aggregation="sum"),
        Algorithm(name="rloo", source="arXiv:2402.14740", advantage="leave_one_out",
                  ratio="none", aggregation="sum"),
        Algorithm(name="reinforce_pp", source="arXiv:2501.03262", advantage="raw",
                  normalise=True, kl="k1", kl_in="reward", beta=0.01),
        Algorithm(name="ppo", source="arXiv:1707.06347", advantage="raw",
                  critic=Critic(), normalise=True, aggregation="token_mean",
                  kl="k1", kl_in="reward", beta=0.02, updates=4),
        Algorithm(name="ppo_orz", source="arXiv:2503.24290", advantage="raw",
                  critic=Critic(lam=1.0, lam_critic=1.0, value_clip=0.0, updates=12, bootstrap=False),
                  normalise=True, aggregation="token_mean"),
        Algorithm(name="vapo", source="arXiv:2504.05118", advantage="raw",
                  critic=Critic(stretch=0.05, lam_critic=1.0, value_clip=0.0, updates=4, bootstrap=False),
                  clip_high=0.28, aggregation="token_mean", clone=0.1, warmup=50),
        Algorithm(name="grpo", source="arXiv:2402.03300", advantage="zscored", kl="k3", beta=0.04),
        Algorithm(name="dr_grpo", source="arXiv:2503.20783", advantage="centred",
                  aggregation="sum_over_limit"),
        Algorithm(name="dapo", source="arXiv:2503.14476", advantage="zscored",
                  clip_high=0.28, aggregation="token_mean", sampling="dynamic"),
        Algorithm(name="gspo", source="arXiv:2507.18071", advantage="zscored",
                  ratio="sequence", clip_low=3e-4, clip_high=4e-4, updates=4),
        Algorithm(name="cispo", source="arXiv:2506.13585", advantage="zscored",
                  ratio="weight", clip_low=1.0, clip_high=4.0, aggregation="token_mean", updates=4),
        Algorithm(name="kimi", source="arXiv:2501.12599", advantage="centred",
                  ratio="none", aggregation="sum", tau=0.1, updates=4,
                  sampling="prioritised", fresh_optimizer=True),
        Algorithm(name="oreal", source="arXiv:2502.06781", advantage="cloned",
                  ratio="none", token_reward=True, warmup=10, kl="k2", beta=0.01),
        Algorithm(name="distil_on_policy", source="arXiv:2306.13649", advantage="none",
                  ratio="none", aggregation="token_mean", kl="k1", kl_in="reward", beta=1.0, gamma=0.0),
    )
}  # fmt: skip


def algorithm(name: str, cells: Mapping[str, Any] | None = None) -> Algorithm:
    """The row `name` with a recipe's cells. Raises RecipeError for an unknown row, cell or value."""
    if name not in TABLE:
        raise RecipeError(f"unknown algorithm {name!r}{did_you_mean(name, TABLE)}")
    return TABLE[name].override(cells or {})


def cells(row: Algorithm) -> dict[str, Any]:
    """Every cell as a recipe writes it in `override`; a critic that is none is left out."""
    return row.model_dump(exclude={"name", "source"}, exclude_none=True)


def shown(row: Algorithm) -> dict[str, str]:
    """A row in a few words a column, for tables that people read."""
    numbers = {"entropy": 0, "clone": 0, "tau": 0, "gamma": 1, "warmup": 0}
    switches = ("normalise", "token_reward", "fresh_optimizer")
    also = [f"{cell} {v:g}" for cell, off in numbers.items() if (v := getattr(row, cell)) != off]
    also += [cell for cell in switches if getattr(row, cell)]
    if row.correction != "none":
        also.append(f"correction {row.correction} ≤ {row.cap:g}")
    critic = "–"
    if c := row.critic:
        lam = f"1 − 1/({c.stretch:g} l)" if c.stretch else f"{c.lam:g}"
        clip = f"; clip {c.value_clip:g}" if c.value_clip else ""
        end = "" if c.bootstrap else "; cut = end"
        critic = f"λ {lam}, {c.lam_critic:g}{clip}; × {c.updates}{end}"
    return {
        "advantage": row.advantage,
        "ratio": row.ratio,
        "clip": "–" if row.ratio == "none" else f"{row.clip_low:g}/{row.clip_high:g}",
        "aggregation": row.aggregation,
        "KL": f"{row.kl} × {row.beta:g} in {row.kl_in}" if row.has_kl else "–",
        "critic": critic,
        "groups": row.sampling,
        "updates": str(row.updates),
        "also": ", ".join(also) or "–",
    }

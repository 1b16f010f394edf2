"""ONE TABLE: every algorithm a row of choices, so that how they differ is read at a glance.

A row decides: where the advantage comes from, whether and how the importance ratio is clipped, how
tokens are weighted against one another, which KL holds the policy near its reference, and which
groups are trained on. Cells not named hold `Algorithm`'s own values (row.py says what each means).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from whet.algorithms.algorithm import Algorithm, Critic
from whet.errors import RecipeError, did_you_mean

TABLE: dict[str, Algorithm] = {
    row.name: row.validated()
    for row in (
        Algorithm("reinforce", "Williams 1992", "batch_centred", ratio="none", aggregation="sum"),
        Algorithm("rloo", "arXiv:2402.14740", "leave_one_out", ratio="none", aggregation="sum"),
        Algorithm("reinforce_pp", "arXiv:2501.03262", "raw", normalise=True, kl="k1", kl_in="reward", beta=0.01),
        Algorithm("ppo", "arXiv:1707.06347", "raw", critic=Critic(), normalise=True, aggregation="token_mean",
                  kl="k1", kl_in="reward", beta=0.02, updates=4),
        Algorithm("ppo_orz", "arXiv:2503.24290", "raw", normalise=True, aggregation="token_mean",
                  critic=Critic(lam=1.0, lam_critic=1.0, value_clip=0.0, updates=12, bootstrap=False)),
        Algorithm("vapo", "arXiv:2504.05118", "raw", clip_high=0.28, aggregation="token_mean", clone=0.1,
                  critic=Critic(stretch=0.05, lam_critic=1.0, value_clip=0.0, updates=4, bootstrap=False), warmup=50),
        Algorithm("grpo", "arXiv:2402.03300", "zscored", kl="k3", beta=0.04),
        Algorithm("dr_grpo", "arXiv:2503.20783", "centred", aggregation="sum_over_limit"),
        Algorithm("dapo", "arXiv:2503.14476", "zscored", clip_high=0.28, aggregation="token_mean", sampling="dynamic"),
        Algorithm("gspo", "arXiv:2507.18071", "zscored", ratio="sequence", clip_low=3e-4, clip_high=4e-4, updates=4),
        Algorithm("cispo", "arXiv:2506.13585", "zscored", ratio="weight", clip_low=1.0, clip_high=4.0,
                  aggregation="token_mean", updates=4),
        Algorithm("kimi", "arXiv:2501.12599", "centred", ratio="none", aggregation="sum", tau=0.1, updates=4,
                  sampling="prioritised", fresh_optimizer=True),
        Algorithm("oreal", "arXiv:2502.06781", "cloned", ratio="none", token_reward=True, warmup=10, kl="k2", beta=0.01),
        Algorithm("distil_on_policy", "arXiv:2306.13649", "none", ratio="none", aggregation="token_mean",
                  kl="k1", kl_in="reward", beta=1.0, gamma=0.0),
    )
}  # fmt: skip


def algorithm(name: str, cells: Mapping[str, Any] | None = None) -> Algorithm:
    """The row `name` with a recipe's cells. Raises RecipeError for an unknown row, cell or value."""
    if name not in TABLE:
        raise RecipeError(f"unknown algorithm {name!r}{did_you_mean(name, TABLE)}")
    return TABLE[name].override(cells or {})


def cells(row: Algorithm) -> dict[str, Any]:
    """Every cell as a recipe would write it in `override`; what is None is left out."""
    return {k: v for k, v in asdict(row).items() if k not in ("name", "source") and v is not None}


def shown(row: Algorithm) -> dict[str, str]:
    """A row in a few words a column, for tables that people read."""
    also = [
        f"{name} {value:g}"
        for name, value in (
            ("entropy", row.entropy),
            ("clone", row.clone),
            ("tau", row.tau),
            ("gamma", row.gamma),
            ("warmup", row.warmup),
        )
        if value != (1.0 if name == "gamma" else 0)
    ]
    also += [
        name for name in ("normalise", "token_reward", "fresh_optimizer") if getattr(row, name)
    ]
    if row.correction != "none":
        also.append(f"correction {row.correction} ≤ {row.cap:g}")
    critic = "–"
    if row.critic is not None:
        c = row.critic
        lam = f"1 − 1/({c.stretch:g} l)" if c.stretch else f"{c.lam:g}"
        critic = (
            f"λ {lam}, {c.lam_critic:g}"
            + (f"; clip {c.value_clip:g}" if c.value_clip else "")
            + f"; × {c.updates}"
        )
        critic += "" if c.bootstrap else "; cut = end"
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

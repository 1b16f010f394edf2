"""Every row against exact gradients: see oracle.py. Where a row is biased by design, its bias is a
number here and in its page.
"""

from pathlib import Path

import pytest
import torch

from whet.algorithms.advantages import ADVANTAGES
from whet.algorithms.off_policy import masked, truncated
from whet.algorithms.table import TABLE, algorithm
from whet.model.logprobs import processed
from whet.training.token_advantages import TokenAdvantages
from whet.types import Sampling

from .helpers import oracle as world
from .helpers.oracle import SAMPLING, WHOLE, Oracle, Tabular, TabularCritic, degrees, noisy

PAGES = Path(__file__).parents[1] / "docs/reference/algorithms"
UNBIASED = world.unbiased()
AS_IS = {
    "reinforce": 0.0, "rloo": 0.0, "reinforce_pp": 41.53, "ppo": 24.13, "ppo_orz": 29.05,
    "vapo": 5.07, "grpo": 14.31, "dr_grpo": 0.0,
    "dapo": 11.41, "gspo": 16.90, "cispo": 11.41, "kimi": 0.0, "oreal": 69.19, "distil_on_policy": 9.12,
}  # fmt: skip


@pytest.fixture(scope="module")
def oracle():
    return Oracle()


def test_all_answers_are_there(oracle):
    assert len(oracle.answers) == 15 and abs(oracle.chance.sum().item() - 1) < 1e-12
    assert oracle.gradient(oracle.expected_reward).abs().max() > 0.01
    assert set(UNBIASED) | {"grpo", "dapo", "gspo", "cispo", "oreal"} == set(TABLE) == set(AS_IS)


@pytest.fixture(scope="module")
def rows(oracle):
    return world.table(oracle)


@pytest.mark.parametrize("name", UNBIASED)
def test_rows_have_the_exact_gradient_of_what_they_claim(rows, name):
    assert rows[name][2] < 1e-10


@pytest.mark.parametrize("name", TABLE)
def test_rows_as_they_stand_point_elsewhere_by_exactly_this_much(rows, name):
    angle = rows[name][3]
    assert angle == pytest.approx(AS_IS[name], abs=0.005)
    assert f"{angle:.2f}°" in (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_the_page_shows_the_table_that_the_oracle_prints(rows):
    assert world.printed(rows) in (PAGES / "oracle.md").read_text(encoding="utf-8")


def test_a_wrong_critic_is_harmless_at_lambda_1_and_a_bias_below(oracle):
    exact = oracle.gradient(oracle.expected_reward)
    angles = {}
    for lam in (1.0, 0.95, 0.5, 0.0):
        row = algorithm("ppo_orz", {**WHOLE, "critic": {"lam": lam}})
        angles[lam] = degrees(oracle.expected(row, 1, TabularCritic(noisy)), exact)
    assert angles[1.0] < 1e-5
    assert [round(angles[lam], 2) for lam in (0.95, 0.5, 0.0)] == [3.11, 47.92, 97.77]


def test_a_cut_off_answer_is_bootstrapped(oracle):
    """Sampling stops at 2 tokens, the task at 3: with the value of what was cut off, the first two
    tokens get their exact gradient.
    """
    short = Oracle(reward=lambda a: 0.0, longest=2)
    short.rewards = [world.reward(a) if a[-1] == world.EOS else 0.0 for a in short.answers]
    exact = oracle.gradient(oracle.expected_reward)
    seen = [i for p, i in oracle.policy.place.items() if len(p) < 2]
    critic = oracle.critic()
    bootstrapped, ended = (
        short.expected(
            algorithm("ppo_orz", {**WHOLE, "critic": {"bootstrap": b, "lam": 0.7}}), 1, critic
        )[seen]
        for b in (True, False)
    )
    assert (bootstrapped + exact[seen]).abs().max() < 1e-10
    assert (ended + exact[seen]).abs().max() > 0.01


def test_kl_estimators_as_terms_of_a_loss(oracle):
    """Per token: k1 has no gradient, k2 that of the tokens' KL, which is not that of whole answers;
    k3 points elsewhere again.
    """
    whole, tokens = oracle.gradient(oracle.sequence_kl), oracle.gradient(oracle.token_kl)
    rows = {}
    for name in ("k2", "k3"):
        row = algorithm("rloo", {"advantage": "centred", "kl": name, "beta": 1.0})
        plain = oracle.expected(algorithm("rloo", {"advantage": "centred"}), 1)
        rows[name] = oracle.expected(row, 1) - plain
    assert (rows["k2"] - tokens).abs().max() < 1e-10
    angles = [
        degrees(-rows["k2"], whole),
        degrees(-rows["k3"], whole),
        degrees(-rows["k3"], tokens),
    ]
    assert [round(a, 2) for a in angles] == [15.78, 24.09, 10.4]
    k1 = sum(
        p * (x - q.detach()).sum()
        for p, x, q in zip(
            oracle.chance, oracle.logps(oracle.policy), oracle.logps(oracle.reference), strict=True
        )
    )
    assert torch.autograd.grad(k1, oracle.policy.table)[0].abs().max() < 1e-15


OFF_POLICY = {  # degrees with the row's clip, and without one
    "grpo": [63.93, 40.38], "dapo": [61.29, 37.85], "gspo": [46.12, 33.06],
    "cispo": [37.85, 37.85], "dr_grpo": [58.9, 37.82],
}  # fmt: skip


@pytest.mark.parametrize("name", OFF_POLICY)
def test_off_policy_the_ratio_and_its_clip_are_a_bias_too(name):
    """Drawn by a policy 0.3 away: the angle to the true gradient, and how much of it the clip
    brings.
    """
    o = Oracle(behaviour=Tabular(seed=5, scale=0.3, near=Tabular()))
    row = algorithm(name, {"kl": "none", "beta": 0.0})
    exact = o.gradient(o.expected_reward)
    wide = row.override({"clip_low": 1.0, "clip_high": 1e9})
    angles = [round(degrees(o.expected(r), exact), 2) for r in (row, wide)]
    assert angles == OFF_POLICY[name]


def test_kimi_off_policy_has_the_gradient_of_its_own_objective():
    """(1/k) sum of A log pi - tau/2 (log pi/pi_old)^2 over answers drawn by pi_old, A = r - mean of
    the group.
    """
    o = Oracle(behaviour=Tabular(seed=5, scale=0.3, near=Tabular()))
    row = algorithm("kimi", {"tau": 0.7})
    old = [x.sum() for x in o.drawn_as]
    mean = (o.chance * torch.tensor(o.rewards, dtype=torch.float64)).sum()

    def objective(logps):
        terms = [
            p * (2 / 3 * (r - mean) * x.sum() - 0.7 / 2 * (x.sum() - b) ** 2)
            for p, r, x, b in zip(o.chance, o.rewards, logps, old, strict=True)
        ]
        return sum(terms)

    assert (o.expected(row) + o.gradient(objective)).abs().max() < 1e-10


def test_truncated_sampling_is_exact_for_what_is_sampled_and_biased_for_the_whole(oracle):
    """top-p: the policy that is trained is the renormalised one, and its gradient is exact; the
    whole distribution's points elsewhere.
    """
    cut = Oracle(sampling=Sampling(temperature=0.6, top_p=0.9, max_tokens=5))
    possible = processed(cut.policy.table.detach(), 0.6, 0.9) > -torch.inf
    place = cut.policy.place
    keep = [
        i
        for i, a in enumerate(cut.answers)
        if all(possible[place[a[:n]], t] for n, t in enumerate(a))
    ]
    for name in ("answers", "rewards", "drawn_as"):
        setattr(cut, name, [getattr(cut, name)[i] for i in keep])
    cut.chance = cut.chance[keep]
    assert abs(cut.chance.sum().item() - 1) < 1e-12 and len(keep) < 15
    step = cut.expected(algorithm("rloo"))
    assert (step + cut.gradient(cut.expected_reward)).abs().max() < 1e-10
    assert degrees(step, oracle.gradient(oracle.expected_reward)) == pytest.approx(3.83, abs=0.005)


def test_corrections_of_a_sampler_that_differs():
    """rloo on answers of another sampler: uncorrected, weighted per token, masked by answer;
    degrees to the true gradient.
    """
    o = Oracle(behaviour=Tabular(seed=5, scale=0.3, near=Tabular()))
    exact = o.gradient(o.expected_reward)
    drawn = torch.cat(o.drawn_as)
    mine = torch.cat([x.detach() for x in o.logps(o.policy)])
    index = torch.tensor([i for i, a in enumerate(o.answers) for _ in a])
    factors = {
        "none": torch.ones_like(mine),
        "token": truncated(mine - drawn, 2.0),
        "sequence": masked(mine - drawn, index, 1.2),
    }
    angles = {}
    for name, factor in factors.items():
        pieces = [factor[index == i] for i in range(len(o.answers))]

        def step(pieces=pieces):
            baseline = (o.chance * torch.tensor(o.rewards)).sum()
            terms = [
                -p * (r - baseline) * (f * x).sum()
                for p, r, f, x in zip(o.chance, o.rewards, pieces, o.logps(o.policy), strict=True)
            ]
            return torch.autograd.grad(sum(terms), o.policy.table)[0]

        angles[name] = round(degrees(step(), exact), 2)
    assert angles == {"none": 40.37, "token": 39.07, "sequence": 45.24}


def test_prompt_i_with_reward_i_has_no_advantage_anywhere():
    """Wrong grouping has the right expectation; only this shows it."""
    groups = [torch.full((4,), float(i), dtype=torch.float64) for i in range(6)]
    for name in ("centred", "zscored", "leave_one_out", "cloned"):
        assert all((a == 0).all() for a in ADVANTAGES[name](groups)), name


def test_token_advantages_leave_a_plain_batch_as_it_is(oracle):
    row = algorithm("ppo_orz", WHOLE)
    batch = oracle.batch(row, [(0, 4)], oracle.chance[:1], TabularCritic(lambda p: 0.0))
    again, _ = TokenAdvantages(row, SAMPLING, 10**6, None, TabularCritic(lambda p: 0.0)).compute(
        batch, [oracle.sample(i) for i in (0, 4)], [False, True]
    )
    assert again.tokens is batch.tokens

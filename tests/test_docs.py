"""The pages say what the code does: cells of each algorithm's row, worked numbers, exact biases,
links that lead somewhere.
"""

import ast
import doctest
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from whet.algorithms import objective
from whet.algorithms.batch import pack
from whet.algorithms.table import TABLE, Algorithm, algorithm, cells
from whet.training.token_advantages import TokenAdvantages
from whet.types import Sampling

from . import test_oracle
from .helpers import oracle as world

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference" / "algorithms"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CORE = (
    "advantage",
    "ratio",
    "clip_low",
    "clip_high",
    "aggregation",
    "kl",
    "beta",
    "sampling",
    "updates",
)
PARTS = ("Source", "Choices of ours", "Worked number", "Exact bias", "Use it", "Keys it reads")
rows = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def paragraph(text: str, title: str) -> str:
    """From **title** to the next one."""
    return re.split(r"\n\*\*[A-Z]", text.split(f"**{title}", 1)[1])[0]


def signed(x: float) -> str:
    return f"{x:.4f}".replace("-", "−") if x else "0"


def test_every_row_has_a_page_and_every_page_a_row():
    assert {p.stem for p in PAGES.glob("*.md")} == {*TABLE, "index", "oracle", "trl"}


@rows
def test_a_page_shows_the_cells_of_its_row(row: Algorithm):
    """The core ones and every other that is not at its default; a clip only where there is a ratio."""
    text, plain = page(row.name), cells(Algorithm(name="", source="", advantage="raw"))
    said = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
    told = {k: v for k, v in cells(row).items() if k in CORE or v != plain.get(k)}
    if row.ratio == "none":
        told = {k: v for k, v in told.items() if k not in ("clip_low", "clip_high")}
    assert said == [told]
    assert row.source.removesuffix(" 1992") in text


@rows
def test_a_page_has_its_parts_and_is_short(row: Algorithm):
    text = page(row.name)
    places = [text.find(f"**{title}") for title in PARTS]
    assert -1 not in places and places == sorted(places)
    assert len(text.splitlines()) <= 60 and text.startswith(f"# {row.name}\n")


@pytest.mark.parametrize("name", sorted({*TABLE, "index", "oracle"}))
def test_worked_numbers(name: str):
    found = 0
    for block in re.findall(r"```python\n(.*?)```", page(name), re.DOTALL):
        examples = doctest.DocTestParser().get_doctest(block, {}, name, f"{name}.md", 0)
        told: list[str] = []
        assert doctest.DocTestRunner(verbose=False).run(examples, out=told.append).failed == 0, (
            "".join(told)
        )
        found += len(examples.examples)
    assert found or name not in TABLE


@rows
def test_a_page_names_the_stage_keys_that_the_row_reads(row: Algorithm):
    said = paragraph(page(row.name), "Keys it reads")
    needs = {
        "reference": row.has_kl,
        "critic": row.critic is not None or row.token_reward,
        "pool": row.sampling == "prioritised",
        "draws": row.sampling == "dynamic",
    }
    assert {key for key in needs if re.search(rf"`{key}\b", said)} == {
        key for key, read in needs.items() if read
    }


# (row, changed cells, answers in an update): degrees to the row's claim; what a cell, or the size
# of an update, brings to the bias
BIAS = {
    ("reinforce_pp", (("normalise", False),), 2): 12.08,
    ("reinforce_pp", (("kl", "none"), ("beta", 0.0)), 2): 24.76,
    ("ppo", (("normalise", False),), 2): 3.76,
    ("ppo_orz", (("normalise", False),), 2): 3.97,
    ("ppo_orz", (), 3): 14.58,
    ("vapo", (("clone", 0.0),), 2): 2.83,
    ("vapo", (("aggregation", "sum"),), 2): 1.65,
    ("dapo", (("advantage", "centred"),), 3): 2.67,
    ("gspo", (("aggregation", "sum"),), 3): 8.94,
}


@pytest.fixture(scope="module")
def oracle():
    return world.Oracle()


@pytest.mark.parametrize("case", BIAS, ids=lambda c: "-".join([c[0], *(cell for cell, _ in c[1])]))
def test_what_brings_a_row_its_bias(oracle, case):
    name, changed, size = case
    row = algorithm(name, dict(changed))
    critic = oracle.critic(row.beta if row.rewards_kl else 0.0) if row.critic else None
    same = row.has_kl == TABLE[name].has_kl
    claim = world.claims(oracle)[name][1] if same else oracle.gradient(oracle.expected_reward)
    assert round(world.degrees(oracle.expected(row, size, critic), claim), 2) == BIAS[case]
    assert f"{BIAS[case]:.2f}°" in page(name)


def test_oreal_with_even_token_weights_and_right_or_wrong_answers():
    o = world.Oracle(reward=world.binary)
    row = algorithm("oreal", {"kl": "none", "beta": 0.0})
    step = o.expected(row, 2, world.TabularCritic(lambda p: 1.0))
    assert f"{world.degrees(step, o.gradient(o.expected_reward)):.2f}°" == "4.70°"
    assert "4.70°" in page("oreal")


def test_distilling_with_gamma_1_is_the_kl_of_whole_answers(oracle):
    row = algorithm("distil_on_policy", {"aggregation": "sum", "gamma": 1.0})
    assert (oracle.expected(row, 1) - oracle.gradient(oracle.sequence_kl)).abs().max() < 1e-10


def test_every_angle_in_the_pages_is_one_that_a_test_measures():
    source = Path(test_oracle.__file__).read_text(encoding="utf-8")
    known = {
        n.value
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Constant) and type(n.value) is float
    }
    known |= {*BIAS.values(), 4.7}
    for path in PAGES.glob("*.md"):
        angles = {float(x) for x in re.findall(r"(\d+\.\d\d)°", path.read_text(encoding="utf-8"))}
        assert angles <= known, f"{path.name}: {sorted(angles - known)}"


@pytest.mark.parametrize("name", test_oracle.OFF_POLICY)
def test_a_page_says_what_its_clip_costs_off_policy(name: str):
    assert all(
        f"{angle:.2f}°" in paragraph(page(name), "Exact bias")
        for angle in test_oracle.OFF_POLICY[name]
    )


@rows
def test_the_index_counts_the_models_that_a_row_holds(row: Algorithm):
    held = 1 + row.has_kl + row.trains_critic
    index, link = page("index").splitlines(), f"[{row.name}]({row.name}.md)"
    lines = [x for x in index if x.startswith(f"| {link} |")]
    assert len(lines) == 1 and lines[0].split("|")[-2].strip().startswith(f"{held}: policy")
    assert len([x for x in index if x.startswith(f"- {link}: ")]) == 1


REWARDS, LENGTHS = [[1.0, 0.0, 0.0, 0.0], [1.0] * 4], [2, 4, 4, 6, 3, 3, 3, 3]


def pushes(row: Algorithm) -> list[list[float]]:
    """How hard each token of each answer is pushed in a run's first step: the critic says 0, the
    policy is its own reference.
    """
    row = row.model_copy(update={"kl": "none", "beta": 0.0})
    kept = 1 if row.sampling == "dynamic" else 2
    rewards, lengths = REWARDS[:kept], LENGTHS[: 4 * kept]
    right = [r > 0.5 for group in rewards for r in group]
    given = [a for group in objective.advantages(row, rewards) for a in group.tolist()]
    samples = [world.sample((1,) * n) for n in lengths]
    batch = pack(
        samples,
        given,
        objective.weights(row, lengths, 8),
        torch.float64,
        objective.clone_weights(row, lengths, right),
    )
    batch, _ = TokenAdvantages(
        row, Sampling(), 10**6, None, world.TabularCritic(lambda p: 0.0)
    ).compute(batch, samples, right)
    logp = batch.logp_old.clone().requires_grad_()
    loss = objective.loss(row, logp, torch.zeros_like(logp), batch).sum()
    push = (-torch.autograd.grad(loss, logp)[0]).tolist()
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return [push[a:b] for a, b in pairwise(ends)]


@rows
def test_the_index_compares_the_row_as_it_is(row: Algorithm):
    lines = [x for x in page("index").splitlines() if x.startswith(f"| {row.name} |")]
    if row.advantage == "none":
        assert not lines
        return
    push = pushes(row)
    shown: list[str] = []
    for i in (0, 1, 3, 4):
        if i >= len(push):
            shown.append("left out")
        else:
            first, last = signed(push[i][0]), signed(push[i][-1])
            shown.append(first if first == last else f"{first} … {last}")
    assert lines == [f"| {row.name} | " + " | ".join(shown) + " |"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            path, _, heading = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert there.exists(), f"{target}: no such file"
            if heading:
                headings = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
                assert heading in anchors, f"{target}: no such heading"

"""Beginnings that sequences have in common are computed once, and nothing changes: values,
gradients, whatever the pack.
"""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.model.attention import Packed
from whet.model.config import ModelConfig
from whet.model.shared_prefix import _runs, share_prefixes
from whet.model.transformer import Transformer

SHAPE = ModelConfig("qwen3", 30, 32, 2, 4, 2, 8, 48, qk_norm=True)


def packed(sequences):
    lengths = [len(s) for s in sequences]
    positions = torch.cat([torch.arange(n) for n in lengths])
    return (
        torch.tensor([t for s in sequences for t in s]),
        positions,
        torch.tensor([0, *lengths]).cumsum(0),
    )


def groups(seed, prompts=3, samples=4, template=2):
    rng = random.Random(seed)
    word = lambda n: [rng.randrange(30) for _ in range(n)]  # noqa: E731
    begin, found = word(template), []
    for _ in range(prompts):
        prompt = begin + word(rng.randrange(1, 12))
        found += [prompt + word(rng.randrange(1, 9)) for _ in range(samples)]
    return found


def model(dtype):
    made = Transformer(SHAPE).initialize(torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(
                torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=dtype
                )
                * 0.1
            )
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(6))
def test_hidden_states_and_gradients_are_those_of_every_sequence_alone(seed, dtype):
    pack = packed(groups(seed))
    assert share_prefixes(*pack) is not None
    weigh = torch.randn(len(pack[0]), 32, generator=torch.Generator().manual_seed(2), dtype=dtype)
    told = []
    for alone in (False, True):
        made = model(dtype)
        hidden = made(pack[0], pack[1], Packed(pack[2])) if alone else made.packed(*pack)
        (hidden * weigh).sum().backward()
        told.append([hidden, *(p.grad for p in made.parameters() if p.grad is not None)])
    assert len(told[0]) == len(told[1])
    for ours, exact in zip(*told, strict=True):
        assert (ours - exact).abs().max() < (1e-10 if dtype == torch.float64 else 2e-4) * max(
            1, float(exact.abs().max())
        )


def test_a_group_s_prompt_is_laid_out_once():
    pack = packed([[1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 5, 8, 8], [1, 2, 3, 4, 5, 7]])
    found = share_prefixes(*pack)
    assert pack[0][found.keep].tolist() == [1, 2, 3, 4, 5, 9, 8, 8, 7]
    assert found.starts.tolist() == [0, 5, 6, 8, 9]
    assert found.reads == ((5, 9, 0, 5),)
    assert torch.equal(pack[0][found.keep][found.expand], pack[0])


def test_equal_tokens_at_other_positions_are_not_shared():
    tokens, positions, starts = packed([[1, 2, 3, 4], [1, 2, 3, 5]])
    positions[4:] += 1
    assert share_prefixes(tokens, positions, starts) is None


def test_nothing_in_common_leaves_the_pack_as_it_is():
    assert share_prefixes(*packed([[1, 2, 3], [4, 5, 6], [7]])) is None


@pytest.mark.parametrize(
    ("common", "runs"),
    [
        ([], [(0, 0, 0)]),
        ([200, 200, 5, 200, 200], [(0, 2, 200), (3, 5, 200)]),  # not one run of 5
        ([5, 5, 5], [(0, 3, 5)]),
        ([5, 200, 200], [(0, 0, 0), (1, 3, 200)]),
        ([9, 0, 9], [(0, 1, 9), (2, 3, 9)]),
    ],
)
def test_runs_are_cut_where_it_pays(common, runs):
    assert _runs(common) == runs


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12))
def test_any_pack_comes_back_whole(sequences):
    tokens, positions, starts = packed(sequences)
    found = share_prefixes(tokens, positions, starts)
    if found is None:
        return
    assert len(found.keep) < len(tokens)
    assert torch.equal(tokens[found.keep][found.expand], tokens)
    assert torch.equal(positions[found.keep][found.expand], positions)
    assert found.starts[-1] == len(found.keep)
    assert (found.starts.diff() > 0).all()
    segment = torch.bucketize(found.expand, found.starts, right=True)
    for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        own = segment[a:b].tolist()  # the shared beginning's segment, if any, then its own
        assert len(set(own)) <= 2
        assert own == sorted(own)

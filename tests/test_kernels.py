"""The compiled kernels against the same formulas in torch: values and gradients, ragged sizes, what
is not a number, and doing without.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from whet import kernels
from whet.engines.cache import Cache
from whet.engines.sampling import draw
from whet.engines.step import Step
from whet.model import ops
from whet.model.attention import Packed
from whet.model.config import ModelConfig
from whet.model.linear import Linear, ready
from whet.model.logprobs import processed
from whet.model.transformer import Transformer
from whet.types import Sampling

needed = pytest.mark.skipif(
    kernels.kernels() is None, reason="no C compiler here, so nothing is compiled"
)


def noise(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def both(function, tensors):
    """Results and gradients of float32, compiled, and of float64 in torch."""
    told = []
    for dtype in (torch.float32, torch.float64):
        given = [t.detach().to(dtype, copy=True).requires_grad_(True) for t in tensors]
        out = function(*given)
        out = out if isinstance(out, tuple) else (out,)
        sum((o * noise(*o.shape, seed=i + 9).to(dtype)).sum() for i, o in enumerate(out)).backward()
        told.append([*out, *(g.grad for g in given)])
    return zip(*told, strict=True)


def agree(function, *tensors, within=3e-5):
    for ours, exact in ((a.detach(), b.detach()) for a, b in both(function, tensors)):
        assert ours.dtype == torch.float32
        assert (ours - exact).abs().max() < within * max(1.0, float(exact.abs().max()))


@needed
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (65, 24), (200, 257)])
def test_the_norm(rows, width):
    agree(
        lambda x, w: ops.rms_norm(x, w, 1e-5), noise(rows, width, scale=3.0), noise(width, seed=1)
    )


def test_torch_s_own_norm_is_the_same():
    """It stands in for the formula where there is no CPU."""
    given = [
        noise(9, 24, scale=3.0).double().requires_grad_(),
        noise(24, seed=1).double().requires_grad_(),
    ]
    told = []
    for out in (
        ops.rms_norm(*given, 1e-5),
        torch.nn.functional.rms_norm(given[0], (24,), given[1], 1e-5),
    ):
        told.append([out, *torch.autograd.grad((out * noise(9, 24, seed=5)).sum(), given)])
    for ours, theirs in zip(*told, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@needed
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (130, 100)])
def test_the_gate(rows, width):
    agree(ops.swiglu, noise(rows, 2 * width, scale=20.0))


@needed
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("turns", [True, False])
@pytest.mark.parametrize(("count", "kv", "d"), [(4, 2, 6), (3, 3, 64), (6, 1, 24)])
def test_the_heads(normed, turns, count, kv, d):
    angles = noise(70, 1, d // 2, seed=4, scale=5.0).repeat(1, 1, 2)

    def made(qkv, wq, wk):
        turn = (angles.cos().to(qkv.dtype), angles.sin().to(qkv.dtype)) if turns else None
        q, k, v = ops.heads(qkv, (count, kv), (wq, wk) if normed else None, 1e-6, turn)
        return (q, k, v) if normed else (q + 0 * wq, k + 0 * wk, v)

    agree(made, noise(70, (count + 2 * kv) * d), noise(d, seed=1) + 2, noise(d, seed=2) - 2)


@needed
def test_cosines_of_a_half_of_their_own_are_read_each_where_it_belongs():
    c, s = noise(9, 1, 8, seed=1), noise(9, 1, 8, seed=2)
    agree(
        lambda x: ops.heads(x, (2, 1), None, 1e-6, (c.to(x.dtype), s.to(x.dtype))), noise(9, 4 * 8)
    )


@needed
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(value):
    x = noise(4, 32)
    x[2, 3] = value
    for out in (
        ops.rms_norm(x, torch.ones(32), 1e-6),
        ops.swiglu(x),
        *ops.heads(x, (2, 1), None, 1e-6, None)[:1],
    ):
        assert not out[2].isfinite().all()
        assert out[[0, 1, 3]].isfinite().all()


def grouped(shape, lengths, members, dtype):
    """A cache with prompts in their seats and rows that have begun at different columns."""
    weight = torch.zeros(1, dtype=dtype)
    cache = Cache(shape, 40, weight)
    cache.admit_prompts(lengths, [])
    cache.prompt.copy_(noise(*cache.prompt.shape, seed=1))
    seats = np.repeat(np.arange(len(lengths)), members)
    cache.admit_rows(np.arange(len(seats)), seats)
    cache.own.copy_(noise(*cache.own.shape, seed=2))
    cache.start = cache.start + np.arange(len(seats)) % 5
    cache.column += 9
    rng = np.random.default_rng(0)
    cache.seat = rng.permutation(cache.seat)
    cache.arrange()
    return cache


@needed
@pytest.mark.parametrize(("heads", "kv", "d"), [(4, 4, 64), (6, 2, 24), (2, 1, 10), (2, 2, 128)])
def test_attention_from_the_cache(heads, kv, d):
    shape = ModelConfig("qwen3", 20, heads * d, 2, heads, kv, d, 16)
    told = {}
    for dtype in (torch.float32, torch.float64):
        cache = grouped(shape, [3, 19, 1], 4, dtype)
        q, k, v = noise(12, heads, d, seed=5), noise(12, kv, d, seed=6), noise(12, kv, d, seed=7)
        told[dtype] = [
            cache(1, q.to(dtype), k.to(dtype), v.to(dtype)),
            cache.own[1, :, :, :, cache.column],
        ]
        assert (cache.compiled is None) == (dtype == torch.float64)
    for ours, exact in zip(told[torch.float32], told[torch.float64], strict=True):
        assert (ours - exact).abs().max() < 1e-5


@needed
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_whole_step_in_one_call_is_its_layers_in_turn(biased, threads):
    shape = ModelConfig(
        "smollm3", 50, 48, 3, 4, 2, 12, 40, qk_norm=not biased, qkv_bias=biased, out_bias=biased,
        mlp_bias=biased, no_rope_layers=(1,)
    )  # fmt: skip
    model = Transformer(shape).initialize(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise(*p.shape, seed=p.numel(), scale=0.2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(), ready(model):
            cache = grouped(shape, [3, 19, 1], 4, torch.float32)
            tokens, positions = torch.arange(12), torch.arange(12) + 20
            turn_by_turn = model(tokens, positions, cache)
            kept, cache.own[..., cache.column, :] = cache.own[..., cache.column, :].clone(), 0
            step = Step(model, cache, 40)
            assert step.compiled is not None
            assert (step(tokens, positions) - turn_by_turn).abs().max() < 2e-5
            assert (cache.own[..., cache.column, :] - kept).abs().max() < 2e-5
            short = Step(
                model, cache, 28
            )  # rows that have ended go on beyond the positions that anybody asked for
            assert torch.equal(short(tokens, positions), step(tokens, positions.clamp(max=27)))
    finally:
        torch.set_num_threads(before)


@needed
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (5, 7, 33), (13, 64, 31), (130, 96, 200)]
)
def test_the_product_of_a_packed_weight(rows, inputs, outputs, biased):
    linear = Linear(inputs, outputs, biased)
    x = noise(rows, inputs)
    exact = x.double() @ linear.weight.double().T + (linear.bias.double() if biased else 0)
    with torch.no_grad(), ready(linear):
        assert linear.packed is not None
        assert (linear(x) - exact).abs().max() < 1e-5
    assert linear.packed is None


@needed
def test_a_row_of_a_product_is_the_same_bits_whatever_stands_beside_it_and_on_any_number_of_threads():
    linear, x, before = Linear(96, 230, True), noise(300, 96), torch.get_num_threads()
    try:
        with torch.no_grad(), ready(linear):
            whole = linear(x)
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                for first, last in ((0, 1), (3, 10), (17, 40), (100, 213), (0, 300)):
                    assert torch.equal(linear(x[first:last]), whole[first:last])
    finally:
        torch.set_num_threads(before)


PACK = [
    0,
    30,
    31,
    130,
    240,
    243,
    310,
    345,
    346,
]  # a beginning of 30 that four read, one of 67 that two read


@needed
@pytest.mark.parametrize(("heads", "kv", "d"), [(4, 4, 64), (6, 2, 24), (2, 1, 10), (2, 2, 128)])
def test_attention_over_a_pack_in_float32_and_float64(heads, kv, d):
    starts, reads = torch.tensor(PACK), ((30, 243, 0, 30), (310, 346, 243, 310))
    agree(
        lambda q, k, v: Packed(starts, reads=reads)(0, q, k, v),
        noise(346, heads, d), noise(346, kv, d, seed=1), noise(346, kv, d, seed=2),
    )  # fmt: skip


@needed
def test_attention_is_the_same_bits_alone_and_in_a_pack_and_on_any_number_of_threads():
    q, k, v, told = (
        noise(346, 6, 24),
        noise(346, 2, 24, seed=1),
        noise(346, 2, 24, seed=2),
        noise(346, 6, 24, seed=3),
    )
    found, before = [], torch.get_num_threads()
    for threads, first, starts, reads in (
        (1, 0, PACK, ((30, 243, 0, 30), (310, 346, 243, 310))),
        (3, 0, PACK, ((30, 243, 0, 30), (310, 346, 243, 310))),
        (2, 243, [0, 67, 102, 103], ((67, 103, 0, 67),)),
    ):
        torch.set_num_threads(threads)
        rows = slice(first, first + starts[-1])
        given = [x[rows].clone().requires_grad_(True) for x in (q, k, v)]
        out = Packed(torch.tensor(starts), reads=reads)(0, *given)
        out.backward(told[rows])
        found.append([x[243 - first :] for x in (out.detach(), *(g.grad for g in given))])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


@pytest.mark.parametrize(
    "reads", [((20, 90, 0, 19),), ((21, 90, 0, 20),), ((20, 89, 0, 20),), ((50, 90, 0, 20),)]
)
def test_what_is_read_before_a_segment_is_the_whole_segment_before_it(reads):
    with pytest.raises(ValueError, match="the whole segment before"):
        Packed(torch.tensor([0, 20, 21, 50, 90]), reads=reads)


@needed
@pytest.mark.parametrize("vocabulary", [1, 5, 64, 65, 1000])
def test_drawing_is_the_inverse_of_the_cumulative_distribution(vocabulary):
    logits, u = (
        noise(300, vocabulary, scale=4.0),
        torch.rand(300, generator=torch.Generator().manual_seed(1)).double(),
    )
    u[0], u[1] = 0.0, 1.0 - 2.0**-53
    tokens, logp, bad = draw(logits, u, Sampling(temperature=0.7))
    exact = processed(logits.double(), 0.7)
    cumulative = exact.exp().cumsum(-1)
    rows = torch.arange(300)
    assert not bad.any()
    assert (cumulative[rows, tokens] >= u - 1e-6).all()
    assert (cumulative[rows, tokens] - exact.exp()[rows, tokens] <= u + 1e-6).all()
    assert (logp - exact[rows, tokens]).abs().max() < 1e-5
    logits[3, 0] = float("nan")
    assert draw(logits, u, Sampling(temperature=0.7))[2].tolist() == [i == 3 for i in range(300)]


@needed
def test_the_number_of_threads_changes_no_bit():
    x, w, gate = noise(500, 96), noise(96, seed=1), noise(500, 192, seed=2)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        a, b = x.clone().requires_grad_(True), w.clone().requires_grad_(True)
        (ops.rms_norm(a, b, 1e-6) * ops.swiglu(gate)).sum().backward()
        found.append((a.grad, b.grad))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(p, q) for p, q in zip(other, found[0], strict=True))


@pytest.mark.parametrize(
    "environment", [{"WHET_KERNELS": "off"}, {"CC": "no-such-compiler"}, {"CC": "false"}]
)
def test_without_a_compiler_everything_runs_in_torch(environment, tmp_path):
    code = (
        "import torch; from whet import kernels; from whet.model import ops;"
        "assert kernels.kernels() is None;"
        "print(ops.swiglu(torch.ones(1, 2)).item())"
    )
    told = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=told, check=True
    )
    assert float(done.stdout) == pytest.approx(0.7310586)


@needed
@pytest.mark.parametrize("home", [True, False])
def test_nothing_is_left_beside_the_cache_unless_there_is_none(home, tmp_path):
    (tmp_path / "cache").mkdir() if home else (tmp_path / "cache").write_text("no folder")
    (tmp_path / "tmp").mkdir()
    told = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
    }
    code = "from whet import kernels; assert kernels.kernels() is not None"
    subprocess.run([sys.executable, "-c", code], env=told, check=True)
    assert bool(list((tmp_path / "tmp").glob("whet-*"))) != home


def test_attention_pads_and_reads_in_float32_as_in_float64():
    starts = torch.tensor([0, 20, 21, 50, 90])
    reads = ((20, 90, 0, 20),)
    agree(
        lambda q, k, v: Packed(starts, reads=reads if q.dtype else ())(0, q, k, v),
        noise(90, 4, 16), noise(90, 2, 16, seed=1), noise(90, 2, 16, seed=2),
    )  # fmt: skip

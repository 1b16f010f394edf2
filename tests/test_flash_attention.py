"""Attention over ragged segments, as a GPU's kernels compute it: the pack's, to rounding, with and
without beginnings in common.
"""

import random

import pytest
import torch

from whet.model import flash_attention, transformer
from whet.model.attention import Packed
from whet.model.config import ModelConfig
from whet.model.flash_attention import Plain, Ragged, Spans, attention_for, kernel_for, merged
from whet.model.shared_prefix import share_prefixes
from whet.model.transformer import Transformer

READS = ((5, 12, 0, 5), (15, 20, 12, 15))
STARTS = torch.tensor([0, 5, 8, 12, 15, 16, 20, 27])


def model():
    shape = ModelConfig("qwen3", 30, 32, 2, 4, 2, 8, 48, qk_norm=True)
    made = Transformer(shape).initialize(torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(
                torch.randn(
                    p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype
                )
                * 0.1
            )
    return made


def groups(seed):
    """Three prompts with a template in common, four answers to each: tokens, positions, starts."""
    rng = random.Random(seed)
    word = lambda n: [rng.randrange(30) for _ in range(n)]  # noqa: E731
    begin, rows = word(2), []
    for _ in range(3):
        prompt = begin + word(rng.randrange(1, 12))
        rows += [prompt + word(rng.randrange(1, 9)) for _ in range(4)]
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    return (
        torch.tensor([t for row in rows for t in row]),
        positions,
        torch.tensor([0, *map(len, rows)]).cumsum(0),
    )


def drawn(heads=4, kv=2, n=27):
    rng = torch.Generator().manual_seed(heads)
    shapes = (heads, kv, kv, heads)
    return [
        torch.randn(n, h, 8, dtype=torch.float64, generator=rng).requires_grad_() for h in shapes
    ]


@pytest.mark.parametrize("reads", [(), READS])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)])
def test_a_pack_s_attention_and_its_gradients(heads, reads):
    *given, weigh = drawn(*heads)
    told = []
    for attend in (Packed(STARTS, reads=reads), Ragged(STARTS, Plain(), reads)):
        out = attend(0, *given)
        told.append([out, *torch.autograd.grad((out * weigh).sum(), given)])
    for exact, ours in zip(*told, strict=True):
        assert (exact - ours).abs().max() < 1e-10


def test_the_reference_s_gradient_is_that_of_its_values():
    q, k, v, _ = drawn(2, 1, 9)
    bounds = torch.tensor([0, 4, 9], dtype=torch.int32)
    for spans in (Spans(bounds, bounds, (5, 5), causal=True), Spans(bounds, bounds, (5, 5))):

        class Alone(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *given):
                told = Plain().forward(given, spans)  # noqa: B023
                ctx.save_for_backward(*given, *told)
                return told[0]

            @staticmethod
            def backward(ctx, grad):
                *given, out, size = ctx.saved_tensors
                return Plain().backward(grad, tuple(given), (out, size), spans)  # noqa: B023

        assert torch.autograd.gradcheck(Alone.apply, (q, k, v))


def test_keys_that_are_not_used_are_not_read():
    q, k, v, _ = (x.detach() for x in drawn(4, 2, 12))
    queries, keys = (
        torch.tensor([0, 1, 3], dtype=torch.int32),
        torch.tensor([0, 6, 12], dtype=torch.int32),
    )
    used = torch.tensor([2, 5], dtype=torch.int32)
    out, size = Plain().forward((q[:3], k, v), Spans(queries, keys, (2, 6), used=used))
    for row, (begin, end) in enumerate([(0, 2), (6, 11), (6, 11)]):
        a, b = k[begin:end].repeat_interleave(2, 1), v[begin:end].repeat_interleave(2, 1)
        scores = torch.einsum("hd,mhd->hm", q[row], a) * 8**-0.5
        assert torch.allclose(size[:, row], scores.logsumexp(-1))
        assert torch.allclose(out[row], torch.einsum("hm,mhd->hd", scores.softmax(-1), b))


def test_two_sets_of_keys_are_one():
    q, k, v, _ = (x.detach() for x in drawn(4, 2, 10))
    bounds = lambda n: torch.tensor([0, n], dtype=torch.int32)  # noqa: E731
    parts = [
        Plain().forward((q, k[a:b], v[a:b]), Spans(bounds(10), bounds(b - a), (10, 9)))
        for a, b in ((0, 3), (3, 10))
    ]
    whole = Plain().forward((q, k, v), Spans(bounds(10), bounds(10), (10, 10)))
    for ours, exact in zip(merged(*parts), whole, strict=True):
        assert torch.allclose(ours, exact)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_through_a_kernel_is_the_model(monkeypatch, seed):
    pack = groups(seed)
    assert share_prefixes(*pack) is not None
    weigh = torch.randn(
        len(pack[0]), 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    told, made = [], []

    def spied(*given):
        made.append(attention_for(*given))
        return made[-1]

    monkeypatch.setattr(transformer, "attention_for", spied)
    for kernel in (None, Plain()):
        monkeypatch.setattr(flash_attention, "kernel_for", lambda *_, kernel=kernel: kernel)
        one = model()
        hidden = one.packed(*pack)
        (hidden * weigh).sum().backward()
        told.append([hidden, *(p.grad for p in one.parameters() if p.grad is not None)])
    assert (
        isinstance(made[0], Packed) and isinstance(made[1], Ragged) and made[1].before is not None
    )
    for exact, ours in zip(*told, strict=True):
        assert torch.allclose(
            exact, ours, rtol=0, atol=1e-10 * max(1, exact.detach().abs().max().item())
        )


def test_where_torch_has_no_kernel_the_pack_is_padded():
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.zeros(1, dtype=dtype)
        assert kernel_for(weight, 64) is None and isinstance(
            attention_for(STARTS, weight, 64), Packed
        )
    assert flash_attention.can_share_prefixes(
        torch.zeros(1), 64
    ) and not flash_attention.can_share_prefixes(torch.zeros(1, dtype=torch.bfloat16), 64)


def test_the_binding_names_an_operator_of_this_torch():
    """Arguments in the places that torch's own schema gives them: a kernel of another form is told
    apart without a GPU.
    """
    forward, backward = (
        getattr(torch.ops.aten, f"_flash_attention_{way}").default._schema.arguments
        for way in ("forward", "backward")
    )
    names = [a.name for a in forward]
    assert names[:10] == [
        "query", "key", "value", "cum_seq_q", "cum_seq_k",
        "max_q", "max_k", "dropout_p", "is_causal", "return_debug_mask",
    ]  # fmt: skip
    assert "seqused_k" in names and forward[names.index("seqused_k")].kwarg_only
    assert [a.name for a in backward][:14] == [
        "grad_out", "query", "key", "value", "out", "logsumexp", "cum_seq_q", "cum_seq_k",
        "max_q", "max_k", "dropout_p",
        "is_causal", "rng_state", "unused",
    ]  # fmt: skip


def test_an_empty_segment_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        Ragged(torch.tensor([0, 3, 3]), Plain())

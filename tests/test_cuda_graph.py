"""Decode steps that can be replayed: what they sample, and that a replay reads nothing of the
host's.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whet.config import Lora
from whet.engines import cuda_graph, static_cache
from whet.engines.native import NativeEngine
from whet.engines.static_cache import StaticCache
from whet.engines.step import Step
from whet.model.config import ModelConfig
from whet.model.flash_attention import Plain
from whet.model.lora import adapt
from whet.model.transformer import Transformer
from whet.types import Problem, Prompt, Sampling

EOS = (0, 3)


class Letters:
    def decode(self, tokens):
        return ""


def tiny(**more):
    config = ModelConfig(
        "qwen3", 23, 32, 2, 4, 2, 8, 48, qk_norm=True, tied=False, max_positions=512
    )
    model = Transformer(replace(config, **more)).initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim > 1 else 1)  # attention matters, and tokens differ in probability
    return model.double()  # in float32 a CPU's kernels are compiled, where no recorder sees them


def ask(*lengths):
    rng = np.random.default_rng(len(lengths))
    return [
        Prompt(
            Problem(f"q{i}", ({"role": "user", "content": ""},)),
            tuple(rng.integers(0, 23, n).tolist()),
        )
        for i, n in enumerate(lengths)
    ]


class Noted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Recorder:
    """Captures as a CUDA graph does: operations on fixed memory, numbers of the host as they were,
    no look at what tensors hold.
    """

    def __init__(self, fails=False):
        self.fails, self.warmed, self.caught, self.replays = fails, 0, 0, 0

    def warm(self, run):
        self.warmed += 1
        run()

    def captured(self, run):
        self.caught += 1
        if self.fails:
            raise RuntimeError("capture failed")
        with Noted() as noted:
            run()

        def again():
            self.replays += 1
            for func, args, kwargs, out in noted.calls:
                made = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(made), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return again


@pytest.fixture
def recorder(monkeypatch):
    """The sampler of a GPU, on this machine: kernels in torch, graphs that are lists of operations."""
    made = Recorder()
    monkeypatch.setattr(cuda_graph, "kernel_for", lambda *_: Plain())
    real = cuda_graph.Replayed.__init__
    monkeypatch.setattr(
        cuda_graph.Replayed,
        "__init__",
        lambda self, model, cache, _: real(self, model, cache, made),
    )
    return made


def drawn(model, prompts, sampling, rows):
    groups = NativeEngine(model, Letters(), EOS, rows).generate(prompts, sampling)
    return [s for group in groups for s in group]


def same(ours, exact):
    assert [s.tokens.tolist() for s in ours] == [s.tokens.tolist() for s in exact]
    assert [s.finish for s in ours] == [s.finish for s in exact]
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)


@pytest.mark.parametrize("rows", [3, 8, 64])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(n=6, temperature=0.6, max_tokens=80, top_p=0.9, top_k=9, seed=5),
        Sampling(n=5, temperature=0.9, max_tokens=90, seed=6),
        Sampling(n=2, temperature=0.0, max_tokens=70),
    ],
    ids=["top-p", "plain", "greedy"],
)
def test_replayed_steps_sample_what_the_others_do(request, monkeypatch, sampling, rows):
    model, prompts = tiny(), ask(5, 1, 40, 5, 17, 33, 36)
    exact = drawn(model, prompts, sampling, rows)
    recorder = request.getfixturevalue("recorder")
    monkeypatch.setattr(static_cache, "FIRST", 8)
    monkeypatch.setattr(static_cache, "BLOCK", 4)
    same(drawn(model, prompts, sampling, rows), exact)
    assert len({s.length for s in exact}) > 3 or sampling.temperature == 0
    assert recorder.replays > 2 * recorder.caught > 0


@pytest.mark.parametrize("change", [{"kv_heads": 4}, {"kv_heads": 1, "no_rope_layers": (1,)}])
def test_other_shapes_and_adapters(request, change):
    model, prompts, s = (
        tiny(**change),
        ask(9, 3, 9, 20, 2),
        Sampling(n=5, temperature=0.9, max_tokens=60, seed=2),
    )
    adapt(model, Lora(rank=2, alpha=4))
    exact = drawn(model, prompts, s, 6)
    request.getfixturevalue("recorder")
    same(drawn(model, prompts, s, 6), exact)


def test_a_step_that_cannot_be_captured_is_taken_bit_by_bit(request):
    model, prompts, s = tiny(), ask(5, 9), Sampling(n=4, max_tokens=40, seed=1)
    exact = drawn(model, prompts, s, 8)
    recorder = request.getfixturevalue("recorder")
    recorder.fails = True
    same(drawn(model, prompts, s, 8), exact)
    assert (recorder.caught, recorder.replays) == (1, 0)


def test_rows_that_change_hands_need_no_new_capture(recorder):
    """Four prompts of one length through rows for two: what is captured for the first two serves
    the others.
    """
    drawn(tiny(), ask(7, 7, 7, 7), Sampling(n=1, temperature=1.2, max_tokens=100, seed=3), 2)
    assert recorder.caught <= 2 < recorder.replays  # two rows, then one


def test_room_comes_in_steps():
    cache = StaticCache(tiny().config, 1000, torch.zeros(1), Plain())
    seats = cache.admit_prompts([3] * 5, ())
    assert cache.prompt.shape[2:4] == (5, 32) and seats.tolist() == [0, 1, 2, 3, 4]
    assert cache.admit_prompts([40], ()).tolist() == [5] and cache.prompt.shape[2:4] == (6, 64)
    assert cache.admit_prompts([2], ()).tolist() == [6] and cache.prompt.shape[2] == 8
    assert cache.admit_prompts([2], [7]).tolist() == [7]
    cache.admit_rows(np.arange(9), np.array([0, 1, 2, 3, 4, 4, 4, 4, 4]))
    cache.arrange()
    assert cache.own.shape[2:4] == (12, static_cache.FIRST)
    assert cache.members == 6  # five rows of seat 4; seat 0 has one, and three that nobody reads
    told, views = cache.indices[0].data_ptr(), cache.views
    cache.admit_rows(np.array([2]), np.array([7]))
    cache.arrange()
    assert (cache.indices[0].data_ptr(), cache.views) == (told, views)
    cache.column = static_cache.FIRST
    cache.open_column()
    assert cache.own.shape[3] == 192 and cache.views == views + 1
    cache.move(np.array([8]), np.array([1]), 6)
    assert cache.own.shape[2] == 6 and cache.seat.tolist() == [
        0,
        2,
        3,
        1,
        2,
        2,
    ]  # of the seats 0, 3, 4 and 7


def test_without_a_kernel_the_step_is_the_usual_one():
    cache, step = cuda_graph.decoding(tiny(), 10, 20)
    assert isinstance(step, Step) and not isinstance(cache, StaticCache)

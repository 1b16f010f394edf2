"""The native sampler: the distribution it draws from, what a sample may depend on, and what it
refuses.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from whet.engines import native
from whet.engines.cache import Cache
from whet.engines.native import NativeEngine
from whet.engines.sampling import inverse_cdf, sample_keys, uniforms
from whet.errors import DataError, WhetError
from whet.kernels import kernels
from whet.model.config import ModelConfig
from whet.model.logprobs import chosen_logprobs, processed
from whet.model.transformer import Transformer
from whet.types import Problem, Prompt, Sample, Sampling

EOS = (0, 3)


class Letters:
    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(97 + t) for t in tokens if t not in EOS)


def tiny(vocab: int = 23, **more: object) -> Transformer:
    config = ModelConfig(
        "qwen3", vocab, 32, 2, 4, 2, 12, 48, qk_norm=True, tied=False, max_positions=512
    )
    model = Transformer(replace(config, **more)).initialize(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(10 if p.ndim > 1 else 1)  # attention matters, and tokens differ in probability
    return model


def ask(*lengths: int, vocab: int = 23) -> list[Prompt]:
    rng = np.random.default_rng(len(lengths))
    return [
        Prompt(
            Problem(f"q{i}", ({"role": "user", "content": ""},)),
            tuple(rng.integers(0, vocab, n).tolist()),
        )
        for i, n in enumerate(lengths)
    ]


def trainer_logp(model: Transformer, sample: Sample, s: Sampling) -> np.ndarray:
    tokens = torch.from_numpy(sample.tokens)
    hidden = model.packed(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)]))
    chosen = torch.from_numpy(np.flatnonzero(sample.mask))

    def shape(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return processed(logits, s.temperature, s.top_p, s.top_k, keep=targets)

    return chosen_logprobs(hidden, model.logits, tokens, chosen, shape)[0].detach().numpy()


SETTINGS = [
    Sampling(n=6, temperature=0.6, max_tokens=80, top_p=0.9, top_k=9, seed=5),
    Sampling(n=5, temperature=0.6, max_tokens=90, seed=6),
    Sampling(n=3, temperature=1.3, max_tokens=70, top_p=0.7, seed=7),
    Sampling(n=2, temperature=0.0, max_tokens=70, top_p=0.5),
]


@pytest.mark.parametrize("sampling", SETTINGS)
@pytest.mark.parametrize("rows", [3, 8, 64])
def test_the_trainer_agrees_with_the_sampler(sampling: Sampling, rows: int) -> None:
    model, prompts = tiny(), ask(5, 1, 40, 5, 17, 33)
    groups = NativeEngine(model, Letters(), EOS, rows, version=7).generate(prompts, sampling)
    assert [len(g) for g in groups] == [sampling.n] * len(prompts)
    for prompt, group in zip(prompts, groups, strict=True):
        for s in group:
            p = len(prompt.tokens)
            assert tuple(s.tokens[:p].tolist()) == prompt.tokens
            assert not s.mask[:p].any() and s.mask[p:].all() and s.version == 7
            stops = np.isin(s.tokens[p:], EOS)
            assert not stops[:-1].any() and s.finish == ("stop" if stops[-1] else "length")
            assert s.finish == "stop" or s.length == sampling.max_tokens
            assert s.text == Letters().decode(s.tokens[p:].tolist())
            np.testing.assert_allclose(s.logp[p:], trainer_logp(model, s, sampling), atol=1e-5)
    assert {s.finish for g in groups for s in g} == {"stop", "length"} or sampling.temperature == 0
    assert len({s.length for g in groups for s in g}) > 3 or sampling.temperature == 0


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    model, sampling = tiny(), Sampling(n=6, temperature=0.8, max_tokens=80, seed=3)
    prompts = ask(5, 1, 40, 5, 17, 33, 6)
    together = NativeEngine(model, Letters(), EOS).generate(prompts, sampling)
    for rows in (1, 4, 7):
        other = NativeEngine(model, Letters(), EOS, rows).generate(prompts[::-1], sampling)[::-1]
        assert [[s.tokens.tolist() for s in g] for g in other] == [
            [s.tokens.tolist() for s in g] for g in together
        ]
        if kernels() is not None:  # then not by a bit
            pairs = zip(sum(other, ()), sum(together, ()), strict=True)
            assert all(np.array_equal(a.logp, b.logp) for a, b in pairs)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    other = NativeEngine(model, Letters(), EOS).generate(prompts, sampling)
    torch.set_num_threads(before)
    if kernels() is not None:
        pairs = zip(sum(other, ()), sum(together, ()), strict=True)
        assert all(np.array_equal(a.logp, b.logp) and a.text == b.text for a, b in pairs)
    for prompt, group in zip(prompts, together, strict=True):
        alone = NativeEngine(model, Letters(), EOS).generate([prompt], replace(sampling, n=2))[0]
        assert [s.tokens.tolist() for s in alone] == [s.tokens.tolist() for s in group[:2]]
    assert len({tuple(s.tokens.tolist()) for s in together[0]}) > 1
    reseeded = NativeEngine(model, Letters(), EOS).generate(prompts, replace(sampling, seed=4))
    assert any(
        a.tokens.tolist() != b.tokens.tolist()
        for a, b in zip(reseeded[2], together[2], strict=True)
    )


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0.6), Sampling(temperature=1.4, top_p=0.8), Sampling(top_k=3)],
    ids=str,
)
def test_frequencies_follow_the_processed_distribution(sampling: Sampling) -> None:
    model, prompt, n = tiny(vocab=5, hidden=16, layers=1), ask(3, vocab=5), 4000
    group = NativeEngine(model, Letters(), ()).generate(
        prompt, replace(sampling, n=n, max_tokens=2, seed=11)
    )[0]
    counts = Counter(tuple(s.tokens[3:].tolist()) for s in group)
    statistic, cells = 0.0, 0
    for pair in product(range(5), repeat=2):
        tokens = torch.tensor([*prompt[0].tokens, *pair])
        hidden = model.packed(tokens, torch.arange(5), torch.tensor([0, 5]))[2:4]
        logp = processed(model.logits(hidden), sampling.temperature, sampling.top_p, sampling.top_k)
        expected = n * logp.gather(1, tokens[3:, None]).sum().exp().item()
        if expected < 5:
            assert counts[pair] < 20 and (expected > 0 or counts[pair] == 0)
            continue
        statistic, cells = statistic + (counts[pair] - expected) ** 2 / expected, cells + 1
    assert cells > 5 and statistic < cells + 3 * (2 * cells) ** 0.5


def test_inverse_cdf_never_takes_what_has_no_probability() -> None:
    logp = torch.tensor([[-torch.inf, 0.25, -torch.inf, 0.75, -torch.inf]]).where(
        torch.tensor([[True, False, True, False, True]]),
        torch.tensor([[0, 0.25, 0, 0.75, 0]]).log(),
    )
    below, one = np.nextafter(0.25, 0), np.nextafter(1.0, 0)
    for u, token in ((0.0, 1), (below, 1), (0.25, 3), (one, 3), (1.0, 3)):
        assert inverse_cdf(logp, torch.tensor([u], dtype=torch.float64)).item() == token


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000])
def test_inverse_cdf_is_the_same_over_blocks(vocab: int) -> None:
    """Beside one cumulative sum over the row, with whole blocks that have no probability, and u in
    every corner.
    """
    rng = torch.Generator().manual_seed(vocab)
    logits = 3 * torch.randn(200, vocab, generator=rng, dtype=torch.float64)
    logits[:50, 1:700] = -torch.inf
    logits[50:90, 640:] = -torch.inf if vocab > 640 else 0.0
    logp = logits.log_softmax(-1)
    u = torch.rand(200, generator=rng, dtype=torch.float64)
    u[::7], u[1::7], u[2::7] = 0.0, np.nextafter(1.0, 0), 1.0
    ends = logp.exp().cumsum(-1)
    told = inverse_cdf(logp, u)
    assert (logp.gather(1, told[:, None]) > -torch.inf).all()
    below = torch.where(told > 0, ends.gather(1, (told - 1).clamp_min(0)[:, None]).squeeze(1), 0.0)
    target, within = u * ends[:, -1], 1e-12
    assert (below <= target + within).all() and (
        ends.gather(1, told[:, None]).squeeze(1) >= target - within
    ).all()


def test_uniform_numbers_are_uniform_and_belong_to_their_key() -> None:
    keys = sample_keys(ask(*[3] * 50), 9, 8)
    u = uniforms(keys, np.zeros(400, dtype=np.int64), 100)
    assert len(np.unique(u)) == u.size and u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 50
    assert abs(np.corrcoef(u[:, :-1].ravel(), u[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.02
    assert not np.isin(sample_keys(ask(*[3] * 50), 10, 8), keys).any()


def test_the_same_id_twice_gives_other_samples() -> None:
    prompt, s = ask(4)[0], Sampling(n=2, max_tokens=30, seed=1)
    first, second = NativeEngine(tiny(), Letters(), ()).generate([prompt, prompt], s)
    assert len({tuple(x.tokens.tolist()) for x in (*first, *second)}) == 4


@pytest.mark.parametrize("change", [{}, {"kv_heads": 4}, {"kv_heads": 1, "no_rope_layers": (1,)}])
def test_a_cache_that_grows_and_shifts(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    model, prompts, s = (
        tiny(**change),
        ask(9, 3, 9, 20, 2),
        Sampling(n=5, temperature=0.9, max_tokens=90, seed=2),
    )
    expected = NativeEngine(model, Letters(), EOS).generate(prompts, s)
    monkeypatch.setattr("whet.engines.cache.AT_ONCE", 0)
    monkeypatch.setattr("whet.engines.cache.BLOCK", 4)
    monkeypatch.setattr(native, "PREFILL", 10)
    groups = NativeEngine(model, Letters(), EOS, 6).generate(prompts, s)
    for sample, other in zip(
        (x for g in groups for x in g), (x for g in expected for x in g), strict=True
    ):
        assert sample.tokens.tolist() == other.tokens.tolist()
        np.testing.assert_allclose(
            sample.logp[sample.mask], trainer_logp(model, sample, s), atol=1e-5
        )


def test_a_groups_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    admit = Cache.admit_prompts

    def spy(cache: Cache, lengths: Sequence[int], free: Sequence[int]) -> np.ndarray:
        read.extend(lengths)
        return admit(cache, lengths, free)

    monkeypatch.setattr(Cache, "admit_prompts", spy)
    for rows in (3, 7, 64):
        read.clear()
        NativeEngine(tiny(), Letters(), EOS, rows).generate(
            ask(9, 3, 20), Sampling(n=5, max_tokens=20)
        )
        assert read == [20, 9, 3]


def test_weights_are_read_at_every_call_and_modes_restored() -> None:
    model, told = tiny(), []
    model.layers[0].eval()
    engine = NativeEngine(model, Letters(), (), rows=4)
    before = engine.generate(
        ask(5), Sampling(n=6, max_tokens=12, seed=1), lambda *x: told.append(x)
    )[0]
    assert told[-1] == (6, 6) and told == sorted(set(told))
    with torch.no_grad():
        model.head.weight.mul_(-1)
    engine.version = 1
    after = engine.generate(ask(5), Sampling(n=6, max_tokens=12, seed=1))[0]
    assert [s.tokens.tolist() for s in before] != [s.tokens.tolist() for s in after] and after[
        0
    ].version == 1
    assert model.training and not model.layers[0].training and model.layers[1].training
    model.logits(
        model.packed(torch.arange(3), torch.arange(3), torch.tensor([0, 3]))
    ).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model, s = tiny().to(dtype), Sampling(n=4, temperature=0.7, max_tokens=40, seed=1)
    groups = NativeEngine(model, Letters(), EOS, 6).generate(ask(5, 9), s)
    gaps = [np.abs(x.logp[x.mask] - trainer_logp(model, x, s)).mean() for g in groups for x in g]
    assert max(gaps) < (0.3 if dtype == torch.bfloat16 else 1e-6)


def test_refusals() -> None:
    engine = NativeEngine(tiny(), Letters(), EOS)
    empty = Prompt(ask(3)[0].problem, ())
    assert engine.generate([], Sampling()) == []
    for prompts, sampling, error, words in (
        ([empty], Sampling(), DataError, "'q0' has no tokens"),
        (
            [replace(empty, tokens=(1, 23))],
            Sampling(),
            DataError,
            "token 23, but the model knows 0 to 22",
        ),
        ([replace(empty, tokens=(1, -1))], Sampling(max_tokens=1), DataError, "token -1"),
        (
            ask(3, 400),
            Sampling(max_tokens=113),
            WhetError,
            r"'q1'.*512 positions; set max_tokens to 112 or less",
        ),
        (ask(3), Sampling(n=0), WhetError, "n = 0"),
        (ask(3), Sampling(temperature=float("nan")), WhetError, "temperature = nan"),
        (ask(3), Sampling(top_p=0.0), WhetError, "top_p"),
    ):
        with pytest.raises(error, match=words) as caught:
            engine.generate(prompts, sampling)
        assert "\n" not in str(caught.value)
    assert len(engine.generate(ask(400), Sampling(n=1, max_tokens=112))[0]) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_named(value: float) -> None:
    model = tiny()
    free = NativeEngine(model, Letters(), ()).generate(
        ask(9), Sampling(n=8, max_tokens=40, seed=3)
    )[0]
    unread = next(
        t for t in range(23) if t not in ask(9)[0].tokens and any(t in s.tokens[:-1] for s in free)
    )
    first = min(np.flatnonzero(s.tokens == unread)[0] for s in free if unread in s.tokens[:-1])
    with torch.no_grad():
        model.embed.weight[unread] = value  # the model breaks once it has read this token
    with pytest.raises(
        WhetError, match=f"'q0': the model's logits at position {first} are not finite"
    ):
        NativeEngine(model, Letters(), ()).generate(ask(9), Sampling(n=8, max_tokens=40, seed=3))
    broken = tiny()
    with torch.no_grad():
        broken.head.weight[4] = value * broken.head.weight[4].abs()
    with pytest.raises(WhetError, match="'q0': the model's logits at position 8 are not finite"):
        NativeEngine(broken, Letters(), ()).generate(ask(9), Sampling(n=2, max_tokens=5))


def test_no_sample_is_longer_than_max_tokens() -> None:
    s = Sampling(n=70, temperature=1.5, max_tokens=12, seed=1)
    lengths = [
        x.length for x in NativeEngine(tiny(), Letters(), EOS, rows=24).generate(ask(4), s)[0]
    ]
    assert max(lengths) == 12 and min(lengths) < 6

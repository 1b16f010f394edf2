"""The parts of gpu.py that compare a GPU's results with the CPU's; run by gpu.py."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from gpu_lines import GROUP, SHAPES, Line, Setup, Silent, answers, model_of, patched, prompts

from whet.algorithms.batch import pack
from whet.engines import cuda_graph
from whet.engines.native import NativeEngine
from whet.model import transformer
from whet.model.attention import Packed
from whet.model.flash_attention import Plain, Ragged, Spans, kernel_for
from whet.model.transformer import Transformer
from whet.training.learner import policy_logprobs
from whet.types import Sample, Sampling


def small(setup: Setup, **more: object) -> Transformer:
    """Weights large enough that attention matters, in float64 on the CPU."""
    shape = replace(SHAPES["tiny"], qkv_bias=False, qk_norm=True, family="qwen3", **more)
    model = model_of(shape, "cpu", torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4 if p.ndim > 1 else 1)
    return model


def copied(model: Transformer, device: str, dtype: torch.dtype) -> Transformer:
    made = Transformer(model.config).to(device, dtype)
    made.load_state_dict(model.state_dict())
    return made


def apart(ours: torch.Tensor, exact: torch.Tensor) -> float:
    gap = float(
        (ours.detach().cpu().double() - exact.detach().double()).norm()
        / exact.detach().double().norm()
    )
    return gap if gap == gap else float("inf")


def gradient(model: Transformer, samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    batch = pack(samples, [1.0] * len(samples), [1.0] * len(samples)).to(model.embed.weight.device)
    logp, _ = policy_logprobs(model, batch, Sampling())
    logp.float().mean().backward()
    return logp.detach(), torch.cat([p.grad.flatten().cpu().double() for p in model.parameters()])


def same_as_cpu(setup: Setup) -> Iterator[Line]:
    """One small model in float32 here and on the CPU."""
    exact = small(setup)
    cpu, there = copied(exact, "cpu", torch.float32), copied(exact, setup.device, torch.float32)
    asked = prompts(4, 20, exact.config.vocab)
    drawn = [
        NativeEngine(m, Silent(), (3,)).generate(asked, Sampling(8, 1.0, 64)) for m in (cpu, there)
    ]
    flat = [[s for group in groups for s in group] for groups in drawn]
    same = statistics.mean(
        float(a.tokens.tolist() == b.tokens.tolist()) for a, b in zip(*flat, strict=True)
    )
    yield Line("samples that are the CPU's, float32", same, "", ">= 0.95", True)
    (logp, by), (ours, own) = gradient(cpu, flat[0]), gradient(there, flat[0])
    yield Line(
        "log-probabilities beside the CPU's, float32",
        float((logp - ours.cpu()).abs().max()),
        "nats",
        "<= 1e-3",
        True,
    )
    yield Line("gradient beside the CPU's, float32", apart(own, by), "", "<= 1e-3", True)


def attention(setup: Setup) -> Iterator[Line]:
    """Ragged segments through the kernel, and padded, beside float64 on the CPU; values and
    gradients.
    """
    c, rng = setup.shape, torch.Generator().manual_seed(0)
    lengths = [37, 1, 290, 130, 64, 128, 7, 5]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    reads = ((37, 328, 0, 37), (458, 657, 328, 458))
    sizes = (c.heads, c.kv_heads, c.kv_heads, c.heads)
    *heads, weigh = (
        torch.randn(sum(lengths), h, c.head_dim, generator=rng).to(setup.dtype) for h in sizes
    )
    kernel = kernel_for(heads[0].to(setup.device), c.head_dim) or Plain()
    yield Line(
        "flash kernels are there",
        float(not isinstance(kernel, Plain)),
        "",
        ">= 1" if setup.cuda else "",
    )
    bound = "<= 1e-2" if setup.cuda else "<= 1e-5"

    def gradients(
        attend: Callable[..., torch.Tensor], device: str, dtype: torch.dtype
    ) -> list[torch.Tensor]:
        q, k, v = (x.to(device, dtype).requires_grad_() for x in heads)
        out = attend(0, q, k, v)
        return [out, *torch.autograd.grad((out * weigh.to(device, dtype)).sum(), (q, k, v))]

    for name, seen in (("segments", ()), ("segments and beginnings in common", reads)):
        exact = gradients(Packed(starts, reads=seen), "cpu", torch.float64)
        ways: dict[str, Callable[..., torch.Tensor]] = {
            "ragged": Ragged(starts, kernel, seen, setup.device)
        }
        if not seen:
            ways["padded"] = Packed(starts.to(setup.device))
        for way, attend in ways.items():
            ours_all = gradients(attend, setup.device, setup.dtype)
            for what, ours, theirs in zip(
                ("values", "by queries", "by keys", "by values"), ours_all, exact, strict=True
            ):
                yield Line(f"{name}, {way}: {what}", apart(ours, theirs), "", bound, True)
    used = torch.tensor([5, 130], dtype=torch.int32)
    spans = [torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 9], [0, 200, 400])]
    q, k, v = heads[0][:9], heads[1][:400], heads[2][:400]
    exact = Plain().forward(
        (q.double(), k.double(), v.double()), Spans(*spans, (6, 200), used=used)
    )
    there = Spans(*(x.to(setup.device) for x in spans), (6, 200), used=used.to(setup.device))
    ours = kernel.forward(tuple(x.to(setup.device) for x in (q, k, v)), there)
    yield Line("keys of which some are used: values", apart(ours[0], exact[0]), "", bound, True)
    yield Line(
        "keys of which some are used: log-sum-exps", apart(ours[1], exact[1]), "", bound, True
    )


def sharing(setup: Setup) -> Iterator[Line]:
    """The gradient of groups with their prompts computed once, and once for each answer, beside
    float64 on the CPU.
    """
    exact = small(setup)
    samples = answers(exact.config, 2 * GROUP, 24, 40)
    _, by = gradient(exact, samples)
    here = copied(exact, setup.device, setup.dtype)
    _, once = gradient(here, samples)
    with patched(transformer, "can_share_prefixes", lambda *_: False):
        _, often = gradient(here, samples)
    yield Line("gradient, prompts computed for each answer", apart(often, by))
    yield Line(
        "gradient, prompts computed once",
        apart(once, by),
        "",
        f"<= {max(2 * apart(often, by), 1e-5):.2g}",
        True,
    )


def replays(setup: Setup) -> Iterator[Line]:
    """What is sampled from graphs, without them, and what the trainer says of it."""
    model, caught = copied(small(setup), setup.device, setup.dtype), list[int]()
    asked, s = prompts(6, 30, model.config.vocab), Sampling(GROUP, 1.0, 200, seed=4)
    captured = cuda_graph.Graphs.captured

    def counted(self: cuda_graph.Graphs, run: cuda_graph.Run) -> cuda_graph.Run:
        made = captured(self, run)
        caught.append(1)
        return made

    def drawn() -> list[Sample]:
        return [
            x
            for group in NativeEngine(model, Silent(), (3, 5, 9), 32).generate(asked, s)
            for x in group
        ]

    with patched(cuda_graph.Graphs, "captured", counted):
        replayed = drawn()
    with patched(cuda_graph, "Graphs", lambda device: None):
        launched = drawn()
    yield Line("graphs captured", len(caught), "", ">= 1" if setup.cuda else "", True)
    same = statistics.mean(
        float(a.tokens.tolist() == b.tokens.tolist())
        for a, b in zip(replayed, launched, strict=True)
    )
    yield Line("samples from graphs that are those without", same, "", ">= 0.95", True)
    with torch.no_grad():
        batch = pack(replayed, [1.0] * len(replayed), [1.0] * len(replayed)).to(setup.device)
        logp, _ = policy_logprobs(model, batch, s)
    gap = (logp.float() - batch.logp_old).abs()
    yield Line(
        "sampler beside trainer, mean",
        float(gap.mean()),
        "nats",
        "<= 5e-2" if setup.cuda else "<= 1e-4",
        True,
    )

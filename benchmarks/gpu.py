"""Measures whet on a GPU, each figure beside its goal: equality with the CPU, sampling against the
memory's rate, the update's MFU, memory, TRL.

    python benchmarks/gpu.py [--device cuda] [--shape 1.5B] [--batch 256] [--tokens 256]
        [--only sampling,update] [--json FILE]

The weights are random, the shapes real, bfloat16. `--device cpu --shape tiny` runs the same lines on
a CPU in float32, the kernels by their formulas in torch; its speeds have no goal. A part that fails
is printed with its error, and the others run. Exit 1: an equality does not hold. Minutes on a GPU;
with `--device cpu --shape tiny --batch 8 --tokens 8` and without TRL under a minute.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from gpu_equal import attention, replays, same_as_cpu, sharing
from gpu_lines import (
    GROUP,
    PROMPT,
    SHAPES,
    Line,
    Setup,
    Silent,
    answers,
    model_of,
    patched,
    prompts,
    timed,
)

from whet import config
from whet.algorithms import objective
from whet.algorithms.batch import pack
from whet.algorithms.table import algorithm
from whet.bench import compare, roofline, side, workload
from whet.engines import cuda_graph
from whet.engines.native import NativeEngine
from whet.model import flash_attention, transformer
from whet.training.learner import Learner, policy_logprobs
from whet.types import Sampling


def sampling(setup: Setup) -> Iterator[Line]:
    """Tokens a second, and bytes that must be read - weights once a step, all rows' keys and
    values, a group's prompt once - by the memory's rate.
    """
    model = model_of(setup.shape, setup.device, setup.dtype)
    c, asked, width = (
        model.config,
        prompts(max(1, setup.batch // GROUP), PROMPT, setup.shape.vocab),
        model.embed.weight.element_size(),
    )
    rows = len(asked) * GROUP
    weights = roofline.layers(c) + c.hidden * c.vocab
    cache = 2 * c.layers * c.kv_heads * c.head_dim
    read = (
        setup.tokens * width * (weights + cache * (rows * setup.tokens / 2 + len(asked) * PROMPT))
    )
    big = torch.empty(
        1 << (30 if setup.cuda else 24), dtype=torch.uint8, device=setup.device
    ).random_()
    rate = 2 * big.numel() / timed(big.clone, 9)
    del big
    yield Line("memory: rate of a copy, read and written", rate / 1e9, "GB/s")
    peak_reset(setup)
    ways = (
        {"": cuda_graph.Graphs, ", without graphs": lambda device: None}
        if setup.cuda
        else {"": cuda_graph.Graphs}
    )
    for way, captures in ways.items():
        with patched(cuda_graph, "Graphs", captures):
            seconds = timed(
                lambda: NativeEngine(model, Silent(), (), rows).generate(
                    asked, Sampling(GROUP, 1.0, setup.tokens)
                )
            )
        yield Line(f"sampling, {rows} rows{way}", rows * setup.tokens / seconds, "tokens/s")
        yield Line(
            f"sampling{way}: of the copy's rate",
            read / seconds / rate,
            "",
            ">= 0.5" if setup.cuda and not way else "",
        )
        if setup.stated:
            yield Line(
                f"sampling{way}: of the stated rate",
                read / seconds / setup.stated[1],
                "",
                "" if way else ">= 0.5",
            )
    yield from peak(setup, "sampling")


def update(setup: Setup) -> Iterator[Line]:
    """Seconds of an update, and its FLOPs - those that must be done, a prompt once for its group,
    nothing made again - by the card's rate.
    """
    model = model_of(setup.shape, setup.device, setup.dtype)
    c, count = model.config, max(GROUP, setup.batch)
    batch = pack(
        answers(c, count, setup.tokens), [1.0] * count, [1 / (count * setup.tokens)] * count
    ).to(setup.device)
    row = algorithm("dr_grpo")

    def step(learner: Learner, micro_tokens: int) -> None:
        for micro in batch.split(micro_tokens):
            logp, entropy = policy_logprobs(model, micro, Sampling())
            learner.backward(objective.loss(row, logp, entropy, micro).sum())
        learner.step()

    own, groups = count * setup.tokens, count / GROUP
    pairs = count * (setup.tokens**2 / 2 + setup.tokens * PROMPT) + groups * PROMPT**2 / 2
    flops = 6 * roofline.layers(c) * (own + groups * PROMPT) + 6 * c.hidden * c.vocab * own
    flops += 12 * c.layers * c.heads * c.head_dim * pairs
    # Each way with as many tokens at once as 80 GB hold of a 1.5B model.
    ways = (
        ("", False, True, 16_384),
        (", prompts for each answer", False, False, 8_192),
        (", layers made again", True, True, 65_536),
    )
    for way, recompute, once, micro in ways:
        model.recompute = recompute
        learner = Learner(model, config.Optimizer(lr=1e-6), 10)
        peak_reset(setup)
        with patched(
            transformer,
            "can_share_prefixes",
            flash_attention.can_share_prefixes if once else lambda *_: False,
        ):
            seconds = timed(partial(step, learner, micro))
        yield Line(f"update of {count} answers{way}", seconds, "s")
        if setup.stated:
            yield Line(
                f"update{way}: MFU", flops / seconds / setup.stated[0], "", "" if way else ">= 0.4"
            )
        yield from peak(setup, f"update{way}")
        del learner


def peak_reset(setup: Setup) -> None:
    if setup.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(setup: Setup, name: str) -> Iterator[Line]:
    if setup.cuda:
        yield Line(f"{name}: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def trl(setup: Setup) -> Iterator[Line]:
    """The step beside TRL's, on this card."""
    if "trl" in compare.missing():
        raise ModuleNotFoundError(
            "trl is not installed: pip install 'whet[dev]', or carry its wheel"
        )
    steps = 3 if setup.cuda else 2
    plan = compare.Plan(
        [workload.workload(name) for name in ("worst", "typical")],
        setup.size,
        1,
        steps,
        device=setup.device,
    )
    for name, ratio in compare.compare(plan, lambda text: None)["ratios"].items():
        yield Line(
            f"TRL's step by whet's, {name}, {setup.size}",
            ratio,
            "times",
            ">= 4" if setup.cuda else "",
        )


PARTS = (same_as_cpu, attention, sharing, replays, sampling, update, trl)
MUST = {
    "same_as_cpu",
    "attention",
    "sharing",
    "replays",
}  # whose errors are equalities that do not hold


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1.5B", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument(
        "--size", default="50M", choices=workload.SIZES, help="of the model beside TRL"
    )
    parser.add_argument(
        "--only",
        default=",".join(p.__name__ for p in PARTS),
        help="parts, with commas between: %(default)s",
    )
    parser.add_argument("--json", type=Path, help="also writes the figures here")
    a = parser.parse_args()
    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "gpu: no CUDA device here; `--device cpu --shape tiny` runs the same lines on a CPU"
        )
    versions = side.versions(("torch", "transformers", "trl", "triton"))
    setup = Setup(a.device, SHAPES[a.shape], a.batch, a.tokens, a.size)
    print(
        f"{setup.card}; {', '.join(f'{k} {v}' for k, v in versions.items())}; {a.shape}, {setup.dtype}"
    )
    lines, failed = dict[str, list[dict[str, object]]](), list[str]()
    for part in PARTS:
        name = part.__name__
        if name not in a.only.split(","):
            continue
        print(f"{name}: {part.__doc__}")
        lines[name] = []
        try:
            for line in part(setup):
                print(line, flush=True)
                lines[name].append(asdict(line) | {"holds": line.holds})
                failed += [line.what] if line.equality and line.holds is False else []
        except Exception as failure:
            print(
                f"  ERROR {type(failure).__name__}: {' '.join(str(failure).split())[:300]}",
                flush=True,
            )
            traceback.print_exc()
            lines[name].append({"error": f"{type(failure).__name__}: {failure}"})
            failed += [name] if name in MUST else []
    if a.json:
        a.json.write_text(
            json.dumps({"card": setup.card, "versions": versions, "parts": lines}, indent=1),
            encoding="utf-8",
        )
    sys.exit(f"gpu: does not hold: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()

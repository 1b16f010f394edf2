"""Measures the cost of a step of PPO beside one of GRPO: seconds, peak memory, number of models.

    python benchmarks/cost.py [--hidden 256 --layers 6] [--rounds 3]

Every row runs in a process of its own, in turn; the figures are medians. A step has 8 prompts x 8
samples of 128 tokens, every group with signal; a critic has the policy's size. Rewards alternate,
because learning plays no part. About 4 minutes on 2 cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = ("dr_grpo", "grpo", "ppo_orz", "ppo")
PROMPTS, SAMPLES, TOKENS, STEPS = 8, 8, 128, 4


def peak() -> float:
    """MiB."""
    from whet.bench.side import memory

    return memory("VmHWM")


def parameters_of(*models: Any) -> int:
    """Numbers held by all of them together."""
    return sum(p.numel() for m in models for p in m.parameters())


def one(row: str, hidden: int, layers: int) -> dict[str, float]:
    """Seconds a step (the first is left out) and the peak memory over what the imports took."""
    import torch

    from whet import config
    from whet.chat import Chat
    from whet.engines import engine_for
    from whet.model.config import ModelConfig
    from whet.model.transformer import Transformer
    from whet.rollout.context import Context
    from whet.rollout.rollout import rollout
    from whet.stages import rl
    from whet.storage.run_log import RunLog
    from whet.tasks.chain import Chain
    from whet.types import Sampling, Score

    torch.set_num_threads(1)
    task = Chain(operations=6)

    class Alternating:
        def score(self, problems, texts, samples=None):  # noqa: ANN202
            return [Score(float(i % 2)) for i in range(len(texts))]

    chat = Chat.from_characters(task.alphabet())
    shape = ModelConfig(
        "qwen3",
        chat.vocab,
        hidden,
        layers,
        4,
        4,
        hidden // 4,
        hidden * 3,
        qk_norm=True,
        max_positions=512,
    )
    model = Transformer(shape).initialize(torch.Generator().manual_seed(0))
    stage = config.RL(
        name="rl",
        kind="rl",
        steps=STEPS,
        prompts=PROMPTS,
        samples=SAMPLES,
        max_tokens=TOKENS,
        algorithm=row,
    )
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            task,
            Alternating(),
            chat,
            config.Ask(),
            RunLog(Path(scratch)),
            0,
            engine_for,
            lambda name: model,
        )
        before = peak()
        trainer = rl.prepared(model, stage, context)
        engine, seconds = engine_for(model, chat), []
        for step in range(STEPS):
            began = time.perf_counter()
            prompts = context.prompts(task.problems("train", PROMPTS, step))
            groups = rollout(
                engine, context.reward, prompts, Sampling(SAMPLES, 1.0, TOKENS, seed=step)
            )
            sampled = time.perf_counter()
            trainer.update(groups)
            seconds.append((sampled - began, time.perf_counter() - sampled))
    trained = [model, *([trainer.critic.model] if trainer.critic else [])]
    frozen = [] if trainer.reference is None else [trainer.reference]
    # a weight, its gradient and two moments of what is trained; the weights of what is frozen
    numbers = 4 * parameters_of(*trained) + parameters_of(*frozen)
    return {
        "sample": statistics.median(t[0] for t in seconds[1:]),
        "update": statistics.median(t[1] for t in seconds[1:]),
        "memory": peak() - before,
        "trained": len(trained),
        "frozen": len(frozen),
        "state": 4 * numbers / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=ROWS)
    a = parser.parse_args()
    if a.one:
        print(json.dumps(one(a.one, a.hidden, a.layers)))
        return
    results: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for _ in range(a.rounds):
        for row in ROWS:
            command = [
                sys.executable,
                __file__,
                "--one",
                row,
                "--hidden",
                str(a.hidden),
                "--layers",
                str(a.layers),
            ]
            results[row].append(
                json.loads(
                    subprocess.run(command, check=True, capture_output=True, text=True).stdout
                )
            )
    print(
        "| row | models trained + frozen | weights, gradients, moments (MiB) | peak memory (MiB) | "
        "sampling (s) | update (s) | step, × dr_grpo |"
    )
    print("|---|---|---|---|---|---|---|")
    middle = {
        r: {k: statistics.median(x[k] for x in each) for k in each[0]}
        for r, each in results.items()
    }
    whole = middle["dr_grpo"]["sample"] + middle["dr_grpo"]["update"]
    for row, m in middle.items():
        ratio = (m["sample"] + m["update"]) / whole
        print(
            f"| {row} | {m['trained']:.0f} + {m['frozen']:.0f} | {m['state']:.0f} | "
            f"{m['memory']:.0f} | {m['sample']:.2f} | {m['update']:.2f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()

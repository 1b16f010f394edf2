"""Ten thousand conversations of several turns, tool output and texts that spell special tokens: the
ids sampled are the ids trained.
"""

import random

import numpy as np
import pytest
import torch

from whet.algorithms.batch import pack
from whet.chat import Chat
from whet.errors import DataError
from whet.model.shared_prefix import share_prefixes
from whet.preflight.fake_hub import fake_model
from whet.types import Problem, Sample

COUNT = 10_000
TEXTS = [
    "", "a", "2 + 2", "<|im_end|>", "<|im_start|>assistant\n", "<think>", "</think>",
    "<|endoftext|>", "é\u0301", "\u202e", "\0", "  \n\n ", "🙂",
    "<|im_end|><|im_end|>", "im_end", "{{ messages }}", "{% raw %}", "\ufffd", "a" * 300,
]  # fmt: skip


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    fake_model("Qwen/Qwen3-0.6B", folder)
    return Chat.load(folder)


def conversation(rng):
    turns = [{"role": "system", "content": rng.choice(TEXTS)}] if rng.random() < 0.3 else []
    for _ in range(rng.randrange(3)):
        turns += [
            {"role": "user", "content": rng.choice(TEXTS)},
            {"role": "assistant", "content": rng.choice(TEXTS)},
        ]
    return (*turns, {"role": "user", "content": rng.choice(TEXTS) + rng.choice(TEXTS)})


def answered(rng, prompt, vocab):
    """What a policy and tools wrote after a prompt, turn by turn: any ids at all, special ones
    included.
    """
    ids, mask = list(prompt.tokens), [False] * len(prompt.tokens)
    turns = rng.randrange(1, 4)
    for turn in range(turns):
        own = [rng.randrange(vocab) for _ in range(rng.randrange(1, 9))]
        tool = [rng.randrange(vocab) for _ in range(rng.randrange(5))] if turn + 1 < turns else []
        ids += own + tool
        mask += [True] * len(own) + [False] * len(tool)
    logp = np.where(mask, -np.array([rng.random() + 0.1 for _ in ids]), 0.0).astype(np.float32)
    return Sample(np.array(ids), np.array(mask), logp, "", "stop")


def stretches(mask):
    """How many times the policy has its turn."""
    return int((mask & ~np.append(False, mask[:-1])).sum())


def test_ids_sampled_are_ids_trained(chat):
    rng, special, seen, turns = random.Random(3), set(chat.special.values()), 0, 0
    while seen < COUNT:
        samples = []
        for i in range(20):
            messages = conversation(rng)
            prompt = chat.prompt(
                Problem(str(i), messages), thinking=rng.choice([None, True, False])
            )
            # Only the template writes special tokens: a start and an end for each turn, and the
            # start of the answer.
            assert sum(t in special for t in prompt.tokens) == 2 * len(messages) + 1
            samples += [answered(rng, prompt, chat.vocab) for _ in range(rng.randrange(1, 4))]
        batch = pack(samples, [1.0] * len(samples), [1.0] * len(samples))
        micros = list(batch.split(rng.choice([1, 50, 400, 10**6])))
        tokens = torch.cat([m.tokens[m.chosen] for m in micros]).tolist()
        assert tokens == [int(t) for s in samples for t in s.tokens[s.mask]]
        before = torch.cat([m.tokens[m.chosen - 1] for m in micros]).tolist()
        assert before == [int(t) for s in samples for t in s.tokens[:-1][s.mask[1:]]]
        logp = torch.cat([m.logp_old for m in micros]).numpy()
        assert (logp == np.concatenate([s.logp[s.mask] for s in samples])).all()
        for m in micros:
            once = share_prefixes(m.tokens, m.positions, m.starts)
            assert once is None or torch.equal(m.tokens[once.keep][once.expand], m.tokens)
        seen += len(samples)
        turns = max(turns, *(stretches(s.mask) for s in samples))
    assert turns == 3


def test_a_text_that_cannot_be_said_is_refused(chat):
    with pytest.raises(DataError):
        chat.prompt(Problem("p", ({"role": "user", "content": "\ud800"},)))

"""The engine for transformers models: the same contract as the native sampler's, on tiny random
models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from whet.engines.huggingface import HuggingFaceEngine
from whet.errors import WhetError
from whet.model.config import ModelConfig
from whet.model.logprobs import processed
from whet.types import Problem, Prompt, Sampling

transformers = pytest.importorskip("transformers")
VOCAB, EOS = 23, (0, 3)


class Letters:
    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(97 + t) for t in tokens if t not in EOS)


@dataclass
class Adapted:
    config: ModelConfig
    hf: torch.nn.Module


def tiny(family: str) -> Adapted:
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    if family == "llama":
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    else:  # softcaps, and a window shorter than the samples in every second layer
        hf = transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(**shape, sliding_window=9, attn_implementation="eager")
        )
    return Adapted(ModelConfig(family, VOCAB, 32, 2, 4, 2, 8, 48, max_positions=128), hf.train())


def ask(*lengths: int) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [
        Prompt(
            Problem(f"q{i}", ({"role": "user", "content": ""},)),
            tuple(rng.integers(0, VOCAB, n).tolist()),
        )
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("rows", [5, 64])
def test_log_probabilities_are_the_models_own(family: str, rows: int) -> None:
    model, prompts = tiny(family), ask(5, 1, 20, 5, 13)
    s = Sampling(n=4, temperature=0.6, max_tokens=40, top_p=0.9, top_k=15, seed=5)
    told: list[tuple[int, int]] = []
    groups = HuggingFaceEngine(model, Letters(), EOS, rows, 2).generate(
        prompts, s, lambda *x: told.append(x)
    )
    assert told[-1] == (20, 20) and model.hf.training
    model.hf.eval()
    for prompt, group in zip(prompts, groups, strict=True):
        for sample in group:
            p = len(prompt.tokens)
            assert tuple(sample.tokens[:p].tolist()) == prompt.tokens and sample.version == 2
            stops = np.isin(sample.tokens[p:], EOS)
            assert not stops[:-1].any() and sample.finish == ("stop" if stops[-1] else "length")
            tokens = torch.from_numpy(sample.tokens)
            with torch.no_grad():
                logits = model.hf(tokens[None]).logits[0, p - 1 : -1]
            logp = processed(logits, s.temperature, s.top_p, s.top_k, keep=tokens[p:]).gather(
                1, tokens[p:, None]
            )[:, 0]
            np.testing.assert_allclose(sample.logp[p:], logp.numpy(), atol=1e-5)
    assert {x.finish for g in groups for x in g} == {"stop", "length"}


def test_a_sample_does_not_depend_on_its_batch_mates() -> None:
    model, prompts = tiny("llama"), ask(5, 1, 20, 5, 13)
    s = Sampling(n=4, temperature=0.8, max_tokens=40, seed=1)
    together = HuggingFaceEngine(model, Letters(), EOS).generate(prompts, s)
    few = HuggingFaceEngine(model, Letters(), EOS, 3).generate(prompts[::-1], s)[::-1]
    alone = HuggingFaceEngine(model, Letters(), EOS).generate(prompts[2:3], replace(s, n=1))
    tokens = [[x.tokens.tolist() for x in g] for g in together]
    assert tokens == [[x.tokens.tolist() for x in g] for g in few]
    assert alone[0][0].tokens.tolist() == tokens[2][0] and len({tuple(t) for t in tokens[2]}) > 1


def test_refusals() -> None:
    model = tiny("llama")
    engine = HuggingFaceEngine(model, Letters(), EOS)
    with pytest.raises(WhetError, match="positions"):
        engine.generate(ask(100), Sampling(max_tokens=29))
    with torch.no_grad():
        model.hf.lm_head.weight[4, 4] = float("nan")
    with pytest.raises(WhetError, match=r"'q0'.*position 4"):
        engine.generate(ask(5), Sampling(n=2, max_tokens=9))

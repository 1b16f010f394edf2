"""Stand-ins for what only a network has: tiny random checkpoints of a Hub model's architecture, and
rows of a data set's form.
"""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from whet.chat import Chat
from whet.errors import ModelError
from whet.model import pretrained
from whet.model.config import ModelConfig
from whet.model.transformer import Transformer
from whet.model.value_head import ScalarModel

ROWS = 64  # of a data set
POSITIONS = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("<think>", "</think>")  # tokens, but not special ones

# Hugging Face's numbers: hidden, layers, heads, kv heads, head size, ffn; all have 151,936 rows of
# vocabulary, tied.
SHAPES: dict[str, tuple[str, int, int, int, int, int, int]] = {
    "Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072),
    "Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144),
    "Qwen3-4B": ("qwen3", 2560, 36, 32, 8, 128, 9728),
    "Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864),
    "Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960),
    "Qwen2.5-Math-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960),
}
VOCABULARY = 151_936

# Turns between <|im_start|> and <|im_end|>; with the switch off, thinking that is over before it
# began (Qwen3's convention).
TEMPLATE = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}
{%- generation -%}{{- m.content + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- m.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if SWITCH -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
THINKS = "enable_thinking is defined and enable_thinking is false"


def shape_of(name: str) -> ModelConfig:
    """The shape of a Hub model whose name holds a known one's, tied, with its whole vocabulary.
    Raises ModelError for another.

    >>> shape_of("Skywork/Skywork-Reward-V2-Qwen3-0.6B").hidden
    1024
    """
    known = max((size for size in SHAPES if size in name.partition("/")[2]), key=len, default=None)
    if known is None:
        raise ModelError(
            f"{name}: offline only {', '.join(SHAPES)} have stand-ins; give a directory that is here"
        )
    family, hidden, layers, heads, kv_heads, head_dim, ffn = SHAPES[known]
    return ModelConfig(
        family, VOCABULARY, hidden, layers, heads, kv_heads, head_dim, ffn, qk_norm=family == "qwen3", qkv_bias=family == "qwen2",
        max_positions=POSITIONS, rope_theta=1e6,
    )  # fmt: skip


def checkpoint(name: str, directory: Path, scalar: bool = False) -> Path:
    """A tiny random model with the architecture, the kind of tokenizer and the turns of a Hub
    model; `scalar`: a reward model.

    Two layers of 32, the same proportion of heads; a byte-level BPE without merges, so that every
    text can be said. Raises ModelError where the Hub model is not known.
    """
    real = shape_of(name)
    directory.mkdir(parents=True)
    chat = _tokenizer(real.family == "qwen3", directory)
    share = 2 if real.heads > real.kv_heads else 1
    tiny = replace(
        real,
        vocab=chat.vocab,
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=4 // share,
        head_dim=8,
        ffn=64,
        eos=chat.eos,
        pad=chat.pad,
    )
    model = Transformer(tiny).initialize(torch.Generator().manual_seed(sum(name.encode())))
    if scalar:
        model = ScalarModel(model).whole()
        torch.nn.init.normal_(model.head.weight)  # which starts at 0, and would say nothing
    pretrained.write(model, directory)
    return directory


def _tokenizer(thinks: bool, directory: Path) -> Chat:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made: Any = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    made.add_tokens([AddedToken(w, normalized=False) for w in WORDS])
    made.save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    (directory / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    template = TEMPLATE.replace("SWITCH", THINKS if thinks else "false")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Chat.load(directory)


def problems(options: dict[str, Any], path: Path) -> Path:
    """Rows of sums with the columns that the options of a files task name, in a file."""
    rng, rows = random.Random(0), []
    for _ in range(ROWS):
        a, b = rng.randrange(100), rng.randrange(100)
        question, thought = f"What is {a} + {b}?", f"{a} + {b} = {a + b}"
        gold = (
            f"{thought}\n{options['answer_after']} {a + b}"
            if options.get("answer_after")
            else str(a + b)
        )
        if options.get("answer_pattern"):
            gold = f"{thought}\n\\boxed{{{a + b}}}"
        said = f"<think>{thought}</think>\nThe answer is \\boxed{{{a + b}}}."
        row: dict[str, Any] = {}
        if column := options.get("messages"):
            row[column] = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": said},
            ]
        else:
            row[options.get("question", "question")] = question
        if column := options.get("response"):
            row[column] = said
        if column := options.get("answer", "answer"):
            row[column] = gold
        rows.append(row)
    return _written(path, rows)


def rankings(path: Path) -> Path:
    """Conversations of which one was chosen and one rejected, in a file."""
    rows = []
    for i in range(ROWS):
        asked = {"role": "user", "content": f"Say something about the number {i}."}
        sides = {"chosen": f"{i} comes before {i + 1}.", "rejected": "No." + "!" * (i % 5)}
        rows.append(
            {side: [asked, {"role": "assistant", "content": text}] for side, text in sides.items()}
        )
    return _written(path, rows)


def _written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

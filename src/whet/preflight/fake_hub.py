"""Replaces the Hub's models and data sets by tiny fakes, so that a recipe can be tried offline.

A fake model has random weights, and the architecture, kind of tokenizer and turns of the Hub's.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from whet import config
from whet.chat import Chat
from whet.errors import ModelError
from whet.model import pretrained
from whet.model.config import ModelConfig
from whet.model.pretrained import HUB_ID
from whet.model.transformer import Transformer
from whet.model.value_head import ScalarModel

ROWS = 64  # of a fake data set
POSITIONS = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("<think>", "</think>")  # tokens, but not special ones

# family, hidden, layers, heads, kv_heads, head_dim, ffn, from each config.json on the Hub. All have
# 151,936 rows of vocabulary, tied.
SHAPES: dict[str, tuple[str, int, int, int, int, int, int]] = {
    "Qwen3-0.6B": ("qwen3", 1024, 28, 16, 8, 128, 3072),
    "Qwen3-1.7B": ("qwen3", 2048, 28, 16, 8, 128, 6144),
    "Qwen3-4B": ("qwen3", 2560, 36, 32, 8, 128, 9728),
    "Qwen2.5-0.5B": ("qwen2", 896, 24, 14, 2, 64, 4864),
    "Qwen2.5-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960),
    "Qwen2.5-Math-1.5B": ("qwen2", 1536, 28, 12, 2, 128, 8960),
}
VOCABULARY = 151_936
TINY = {"hidden": 32, "layers": 2, "heads": 4, "head_dim": 8, "ffn": 64}  # of a fake model

# Turns stand between <|im_start|> and <|im_end|>. With thinking switched off the prompt ends in an
# empty <think> block (Qwen3's convention).
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


def replace_hub(recipe: config.Recipe, folder: Path) -> config.Recipe:
    """Returns the recipe with a fake, written to `folder`, for every model and data set of the Hub.

    Raises ModelError for a model whose architecture is not in SHAPES.
    """
    data = recipe.model_dump(exclude_none=True)
    here = {"previous", "new", "start", *(s.name for s in recipe.stage)}

    def model(name: str, scalar: bool = False) -> str:
        if name in here or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
            return name
        path = folder / "models" / (name.replace("/", "--") + ("--scalar" if scalar else ""))
        return str(path if path.exists() else fake_model(name, path, scalar))

    if "path" in data["model"]:
        data["model"]["path"] = model(data["model"]["path"])
    data["task"] = _replace_task(data["task"], folder / "data")
    for part in [*data["reward"], *(p for s in data["stage"] for p in s.get("reward", []))]:
        _replace_reward_model(part, model)
    for stage in data["stage"]:
        for key in ("start", "reference"):
            if key in stage:
                stage[key] = model(stage[key])
        if "start" in stage.get("critic", {}):
            stage["critic"]["start"] = model(stage["critic"]["start"], scalar=True)
        if "models" in stage:
            stage["models"] = {model(name): share for name, share in stage["models"].items()}
        if isinstance(stage.get("data"), str) and stage["data"].startswith("hf:"):
            stage["data"] = str(fake_rankings(folder / "data" / f"{stage['name']}.jsonl"))
    return config.Recipe.model_validate(data)


def _replace_reward_model(part: dict[str, Any], model: Callable[..., str]) -> None:
    """Replaces the model of a `learned` reward; a `judge` gets a local one instead of its server."""
    if part["name"] == "learned":
        part["model"] = model(part["model"], scalar=True)
    if part["name"] == "judge":
        for key in ("url", "key_env", "concurrent", "seconds", "retries", "body"):
            part.pop(key, None)
        part["model"] = model(part["model"])


def _replace_task(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the task with a fake file for data that is on the Hub or not on this machine."""
    if task["name"] == "mix":
        return task | {"parts": [_replace_task(part, folder) for part in task["parts"]]}
    if not task["name"].startswith("hf:"):
        path = task.get("path", "")
        if task["name"] != "files" or (
            not path.startswith("hf:") and Path(path).expanduser().exists()
        ):
            return task
    digest = hashlib.sha256(str(sorted(task.items())).encode()).hexdigest()[:8]
    path = fake_problems(task, folder / f"{digest}.jsonl")
    fake = {key: value for key, value in task.items() if key != "test"}
    fake |= {"name": "files", "path": str(path), "test_share": 0.25}
    if "as" in task or "weight" in task:  # a part of a mix keeps its label
        fake["as"] = task.get("as", task["name"])
    return fake


def real_shape(name: str) -> ModelConfig:
    """Returns the published shape of a Hub model, known by a key of SHAPES in its name.

    Raises ModelError for a model that is not known.

    >>> real_shape("Skywork/Skywork-Reward-V2-Qwen3-0.6B").hidden
    1024
    """
    known = max((size for size in SHAPES if size in name.partition("/")[2]), key=len, default=None)
    if known is None:
        raise ModelError(
            f"{name}: offline only {', '.join(SHAPES)} have a fake; give a directory that is here"
        )
    family, hidden, layers, heads, kv_heads, head_dim, ffn = SHAPES[known]
    return ModelConfig(
        family, VOCABULARY, hidden, layers, heads, kv_heads, head_dim, ffn,
        qk_norm=family == "qwen3", qkv_bias=family == "qwen2", max_positions=POSITIONS, rope_theta=1e6,
    )  # fmt: skip


def fake_model(name: str, directory: Path, scalar: bool = False) -> Path:
    """Writes a fake of the Hub model `name`, and returns its directory; `scalar`: a reward model.

    It has two layers of width 32, grouped-query attention where the real one has it, and a
    byte-level BPE without merges, which encodes any text.
    Raises ModelError where the Hub model is not known.
    """
    real = real_shape(name)
    directory.mkdir(parents=True)
    chat = _tokenizer(real.family == "qwen3", directory)
    kv_heads = TINY["heads"] // (2 if real.heads > real.kv_heads else 1)
    tiny = replace(real, **TINY, kv_heads=kv_heads, vocab=chat.vocab, eos=chat.eos, pad=chat.pad)
    model = Transformer(tiny).initialize(torch.Generator().manual_seed(sum(name.encode())))
    if scalar:
        model = ScalarModel(model).whole()
        torch.nn.init.normal_(model.head.weight)  # 0 at first: all scores would be equal
    pretrained.write(model, directory)
    return directory


def _tokenizer(thinks: bool, directory: Path) -> Chat:
    """Writes tokenizer and chat template; `thinks`: the template has the thinking switch."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in SPECIAL])
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in WORDS])
    tokenizer.save(str(directory / "tokenizer.json"))
    options = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")
    template = TEMPLATE.replace("SWITCH", THINKS if thinks else "false")
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Chat.load(directory)


def fake_problems(options: dict[str, Any], path: Path) -> Path:
    """Writes additions as a data set with the columns that a files task's options name."""
    rng, rows = random.Random(0), []
    for _ in range(ROWS):
        a, b = rng.randrange(100), rng.randrange(100)
        question, thought = f"What is {a} + {b}?", f"{a} + {b} = {a + b}"
        gold = str(a + b)
        if options.get("answer_after"):
            gold = f"{thought}\n{options['answer_after']} {a + b}"
        if options.get("answer_pattern"):
            gold = f"{thought}\n\\boxed{{{a + b}}}"
        response = f"<think>{thought}</think>\nThe answer is \\boxed{{{a + b}}}."
        row: dict[str, Any] = {}
        if column := options.get("messages"):
            row[column] = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": response},
            ]
        else:
            row[options.get("question", "question")] = question
        if column := options.get("response"):
            row[column] = response
        if column := options.get("answer", "answer"):
            row[column] = gold
        rows.append(row)
    return _write(path, rows)


def fake_rankings(path: Path) -> Path:
    """Writes a data set of preferences: a chosen and a rejected conversation a row."""
    rows = []
    for i in range(ROWS):
        prompt = {"role": "user", "content": f"Say something about the number {i}."}
        sides = {"chosen": f"{i} comes before {i + 1}.", "rejected": "No." + "!" * (i % 5)}
        rows.append(
            {side: [prompt, {"role": "assistant", "content": text}] for side, text in sides.items()}
        )
    return _write(path, rows)


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

"""A tokenizer's files in a Hugging Face directory, and a tokenizer made of characters."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

from whet.errors import DataError, ModelError

Json = dict[str, Any]

TOKENIZER, CONFIG, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
SPECIALS, JINJA, JINJA_JSON = "special_tokens_map.json", "chat_template.jinja", "chat_template.json"
NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
BOS, EOS = "<bos>", "<eos>"


@dataclass(frozen=True)
class Files:
    """A tokenizer's files: the texts by name, and tokenizer_config and generation_config parsed."""

    texts: dict[str, str]
    config: Json
    generation: Json = field(default_factory=dict)

    @property
    def named(self) -> dict[str, str]:
        """{"eos_token": "</s>", …}: the special tokens that have a role."""
        return {
            role: text for role in NAMED if (text := token_text(self.config.get(role))) is not None
        }

    @property
    def special(self) -> set[str]:
        """The tokens that the configuration calls special, as texts."""
        texts = set(self.named.values())
        for key in ("additional_special_tokens", "extra_special_tokens"):
            texts |= {
                text for v in _values(self.config, key) if (text := token_text(v)) is not None
            }
        for token in _values(self.config, "added_tokens_decoder"):
            if (
                isinstance(token, dict)
                and token.get("special")
                and (text := token_text(token)) is not None
            ):
                texts.add(text)
        return texts

    @property
    def template(self) -> str | None:
        """The chat template of chat_template.jinja, the configuration or chat_template.json."""
        if JINJA in self.texts:
            return self.texts[JINJA]
        inner = json.loads(self.texts[JINJA_JSON]) if JINJA_JSON in self.texts else {}
        value = self.config.get("chat_template") or inner.get("chat_template")
        if isinstance(value, list):
            by_name = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
            value = by_name.get("default")
        if value is not None and not isinstance(value, str):
            raise ModelError(f"the chat template in {CONFIG} is not a text")
        return value

    @property
    def ends(self) -> list[int]:
        """generation_config.json's eos_token_id, as a list. Raises ModelError for other than ids."""
        value = self.generation.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ModelError(
                f"{GENERATION}: eos_token_id is {value!r}; it must be a token id or a list of them"
            )
        return ids


def token_text(value: object) -> str | None:
    """Returns a configuration's token, which is a text or an object with `content`; else None."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def read(directory: Path) -> Files:
    """Reads a directory's tokenizer. Raises ModelError where a file is missing or broken."""
    if not directory.is_dir():
        raise ModelError(
            f"{directory} is not a directory; give a model's directory in Hugging Face's format"
        )
    texts: dict[str, str] = {}
    for name in (TOKENIZER, CONFIG, GENERATION, SPECIALS, JINJA, JINJA_JSON):
        path = directory / name
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as failure:
            raise ModelError(f"{path} cannot be read: {failure}") from None
    for name in (TOKENIZER, CONFIG):
        if name not in texts:
            cure = "save it with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)"
            raise ModelError(f"{directory} has no {name}; {cure}")
    parsed = {
        name: _object(directory / name, texts[name])
        for name in texts
        if name not in (TOKENIZER, JINJA)
    }
    roles = {k: v for k, v in parsed.get(SPECIALS, {}).items() if k in NAMED}
    config = roles | {k: v for k, v in parsed[CONFIG].items() if v is not None}
    return Files(texts, config, parsed.get(GENERATION, {}))


def write(directory: Path, texts: dict[str, str]) -> None:
    """Writes each text to its file, whole or not at all. Raises ModelError where it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            part = directory / f".{name}.part"
            part.write_text(text, encoding="utf-8", newline="")
            os.replace(part, directory / name)
    except OSError as failure:
        raise ModelError(f"the tokenizer cannot be saved to {directory}: {failure}") from None


def of_characters(alphabet: str, words: tuple[str, ...], template: str | None) -> Files:
    """Makes the files of a tokenizer of characters.

    Its tokens are <bos>, <eos>, the words and the alphabet's characters, in this order. Raises
    DataError for an empty alphabet and for words that are empty or clash.
    """
    if not alphabet:
        raise DataError("a tokenizer of characters needs an alphabet; the task's is empty")
    if half := next((c for c in alphabet + "".join(words) if "\ud800" <= c <= "\udfff"), ""):
        raise DataError(
            f"the alphabet holds {half!r}, half of a surrogate pair; it is not valid Unicode"
        )
    for word in words:
        if not word or word in (BOS, EOS) or words.count(word) > 1:
            raise DataError(
                f"the word {word!r} cannot be a token: it is empty, a special token, or listed twice"
            )
    order = list(dict.fromkeys([BOS, EOS, *words, *alphabet]))
    tokenizer = Tokenizer(BPE(vocab={text: i for i, text in enumerate(order)}, merges=[]))
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(
        [AddedToken(w, normalized=False, special=True) for w in (BOS, EOS)]
    )
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in words])
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),
    }
    roles = {role: config[role] for role in ("bos_token", "eos_token", "pad_token")}
    texts = {
        TOKENIZER: tokenizer.to_str(pretty=True),
        CONFIG: json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        SPECIALS: json.dumps(roles, indent=2, ensure_ascii=False) + "\n",
        JINJA: template if template is not None else direct(words),
    }
    return Files(texts, config)


def direct(words: tuple[str, ...]) -> str:
    """Returns a template for tiny models: <bos>, the contents, <eos> after the assistant's.

    With enable_thinking false the answer begins with the two words, such as <think></think>: the
    thinking is empty.
    """
    shut = json.dumps("".join(words[:2]), ensure_ascii=False)
    return (
        "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}{{ "
        + shut
        + " }}{% endif %}"
    )


def _values(config: Json, key: str) -> list[Any]:
    value = config.get(key) or []
    if not isinstance(value, list | dict):
        raise ModelError(f"{CONFIG}: {key} is {value!r}; it must be a list or an object")
    return list(value.values() if isinstance(value, dict) else value)


def _object(path: Path, text: str) -> Json:
    try:
        value = json.loads(text)
    except ValueError as failure:
        raise ModelError(f"{path} is not valid JSON: {failure}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} does not hold a JSON object")
    return value

"""Text <-> tokens: equal to transformers on harmless text, deaf to special tokens in any other."""

import json
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from whet.chat import Chat
from whet.types import Problem

DATA = Path(__file__).parent / "data" / "chat"
CHATML = (DATA / "chatml.jinja").read_text()
HEADERS = (DATA / "headers.jinja").read_text()
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] ~ eos_token }}"
    "{% else %}{{ '[INST] ' ~ m['content'] ~ ' [/INST]' }}{% endif %}{% endfor %}"
)
CHATML_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADERS_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
SPIECE_SPECIAL = ["<s>", "</s>", "<unk>"]
HARMLESS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "<",
    "<|",
    "|>",
    "im_end",
    "\n\n",
    "  ",
    "3 + 4",
    "naïve",
    "🙂",
    "日本",
    "e\u0301",
]
CORPUS = [
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many in May.",
    "What is 3 + 4 * (7 - 2)? Let us think step by step: 7 - 2 = 5, so 4 * 5 = 20 and 3 + 20 = 23.",
    "user system assistant\n\n\tdef f(x):\n    return x < 3 and x > -1  # a comment\n"
    "<p>naïve café — “quotes”</p>",
] * 3


def trained(special, digits=False, add=()):
    """A byte-level BPE as Qwen and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if not digits else None
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    tokenizer.add_tokens(
        [AddedToken(w, normalized=False) for w in ("<think>", "</think>", "<tool_call>", *add)]
    )
    return tokenizer


def spiece(scheme):
    """A sentencepiece-style BPE as Llama 2 (legacy) and Mistral or Gemma have it, with bytes to
    fall back on.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPIECE_SPECIAL, show_progress=False
    )
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Metaspace()
    draft.train_from_iterator(CORPUS, trainer)
    layout = json.loads(draft.to_str())
    vocab = layout["model"]["vocab"]
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    layout["model"] |= {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    strip = [] if scheme == "never" else [decoders.Strip(content=" ", left=1, right=0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    if scheme == "legacy":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_tokens(
        [AddedToken(w, normalized=False) for w in ("<think>", "</think>", "<tool_call>")]
    )
    return tokenizer


def double_bos(tokenizer, bos):
    """Adds a BOS of its own to whatever it encodes, as Llama 3's does."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def saved(directory: Path, tokenizer, template, **config) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    held = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **config,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(held))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


@pytest.fixture(scope="module")
def models_(tmp_path_factory):
    """{name: (Chat, transformers' tokenizer, texts of special tokens)}"""
    from transformers import AutoTokenizer

    base = tmp_path_factory.mktemp("tokenizers")
    eot = AddedToken("<|eot_id|>", normalized=False, special=True, rstrip=True)
    greedy = trained(
        ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>"],
        digits=True,
    )
    greedy.add_special_tokens([eot])
    header = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    old = {
        "bos_token": {"content": "<s>", "__type": "AddedToken"},
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    made = {
        "chatml": (
            trained(CHATML_SPECIAL),
            CHATML,
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            CHATML_SPECIAL,
        ),
        "headers": (
            double_bos(trained(HEADERS_SPECIAL, digits=True), "<|begin_of_text|>"),
            HEADERS,
            header,
            HEADERS_SPECIAL,
        ),
        "rstrip": (greedy, HEADERS, header, HEADERS_SPECIAL),
        **{
            f"spiece-{s}": (spiece(s), INSTRUCT, old, SPIECE_SPECIAL)
            for s in ("first", "always", "never", "legacy")
        },
    }
    loaded = {}
    for name, (tokenizer, template, config, special) in made.items():
        where = saved(base / name, tokenizer, template, **config)
        loaded[name] = Chat.load(where), AutoTokenizer.from_pretrained(where), special
    return loaded


NAMES = [
    "chatml",
    "headers",
    "rstrip",
    "spiece-first",
    "spiece-always",
    "spiece-never",
    "spiece-legacy",
]


def conversation(parts):
    return st.lists(st.one_of(st.sampled_from(parts), st.text(max_size=6)), max_size=6).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(conversation(HARMLESS), min_size=1, max_size=4),
    system=st.booleans(), thinking=st.sampled_from([None, True, False]), ask=st.booleans(),
)  # fmt: skip
def test_ids_equal_transformers(models_, name, texts, system, thinking, ask):
    chat, theirs, special = models_[name]
    if any(s in t for s in special for t in texts):
        return
    turns = ["user", "assistant"] * 2
    roles = ["system", *turns] if system and len(texts) > 1 else turns
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    switch = {} if thinking is None else {"enable_thinking": thinking}
    expected = theirs.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=ask, **switch
    )["input_ids"]
    assert chat.render(messages, thinking, ask) == expected


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_becomes_a_special_token(models_, name, data):
    """Hostile contents give the special tokens that harmless ones give, in the same order; the text
    survives.
    """
    chat, _, special = models_[name]
    halves = [
        half
        for s in special
        for half in (s[: len(s) // 2], s[len(s) // 2 :], s[:-1], s[1:], s[0], s[-1])
    ]
    text = conversation([*special, *halves, *HARMLESS, "\ue000", "\uf8ff"])
    contents = data.draw(st.lists(text, min_size=1, max_size=4))

    def specials(contents):
        roles = ["user", "assistant"] * 2
        ids = chat.render(
            [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        )
        return [i for i in ids if i in chat.special.values()]

    assert specials(contents) == specials(["x"] * len(contents))
    assert not set(chat.encode(contents[0])) & (
        set(chat.special.values()) - {chat.special.get("<unk>")}
    )


@pytest.mark.parametrize("name", ["chatml", "headers"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_hostile_text_survives_unharmed(models_, name, data):
    chat, _, special = models_[name]
    text = data.draw(
        conversation([*special, *HARMLESS[:-1], "\ue000", "\ue001", "<|", "\U000f0000"])
    )
    if name == "chatml":
        text = unicodedata.normalize("NFC", text)
    ids = chat.render([{"role": "user", "content": text}], add_generation_prompt=False)
    marks = [i for i, t in enumerate(ids) if t in chat.special.values()]
    body = "".join(chat.pieces(ids[marks[-2] + 1 : marks[-1]])) if name == "headers" else None
    if body is not None:
        assert body == "\n\n" + text.strip()
    else:
        assert "".join(chat.pieces(ids[1 : marks[1]])) == "user\n" + text
    assert chat.decode(chat.encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_concatenate(models_, name, data):
    chat, theirs, _ = models_[name]
    ids = data.draw(
        st.lists(st.integers(0, chat.vocab - 1), max_size=12)
        | conversation(HARMLESS).map(chat.encode)
    )
    pieces = chat.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == theirs.decode(ids, skip_special_tokens=False)
    assert chat.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(text=conversation(HARMLESS[:-1]))
def test_decoding_undoes_encoding(models_, name, text):
    chat, _, _ = models_[name]
    text = unicodedata.normalize("NFC", text)
    if name.startswith(
        "spiece"
    ):  # sentencepiece's own loss: ▁ is a space, and a first space may be its own
        text = text.replace("▁", "").lstrip(" ")
    if any(w in text for w in ("<think>", "</think>", "<tool_call>", "<unk>")) and name in (
        "spiece-legacy",
        "spiece-always",
    ):
        return  # a prefix space after each added token
    assert chat.decode(chat.encode(text)) == text


def test_a_character_stands_at_the_token_that_completes_it(models_):
    chat, _, _ = models_["chatml"]
    ids = chat.encode("a🙂b")
    pieces = chat.pieces(ids)
    assert len(ids) == 6 and pieces == ["a", "", "", "", "🙂", "b"]
    assert chat.pieces(ids[:3]) == ["a", "", "\ufffd"]  # cut off in the middle
    assert chat.pieces([]) == []
    assert chat.pieces(chat.encode("<think>x")) == ["<think>", "x"]


def test_pieces_of_byte_fallback(models_):
    chat, _, _ = models_["spiece-always"]
    ids = chat.encode("a🙂b")
    pieces = chat.pieces(ids)
    assert "".join(pieces) == "a🙂b" and pieces[-2:] == ["🙂", "b"]
    two = chat.pieces(chat.encode("🙂日"))
    assert two[-7:] == ["", "", "", "🙂", "", "", "日"]
    assert chat.pieces([*ids[:-2], ids[-1]])[-4:] == ["\ufffd", "\ufffd", "\ufffd", "b"]


@pytest.mark.parametrize(
    ("name", "stop"),
    [("chatml", "<|im_end|>"), ("headers", "<|eot_id|>"), ("spiece-first", "</s>")],
)
def test_the_template_says_what_ends_a_turn(models_, name, stop):
    chat, _, _ = models_[name]
    assert chat.turn_end == chat.special[stop] and chat.turn_end in chat.eos
    assert chat.response("8") == [
        *chat.encode("<think>8")[1:],
        chat.turn_end,
    ]  # no prefix space: a prompt stands before
    assert chat.pad == chat.special["<|endoftext|>" if name == "chatml" else stop]


def test_prompt_carries_system_thinking_and_template(models_):
    chat, theirs, _ = models_["chatml"]
    problem = Problem("7", ({"role": "user", "content": "3 + 4"},), answer="SECRET")
    system = {"role": "system", "content": "Be brief."}
    expected = theirs.apply_chat_template(
        [system, *problem.messages],
        tokenize=True,
        add_generation_prompt=True,
        enable_thinking=False,
    )["input_ids"]
    prompt = chat.prompt(problem, thinking=False, system="Be brief.")
    assert (
        prompt.tokens == tuple(expected)
        and prompt.problem is problem
        and "SECRET" not in chat.decode(prompt.tokens)
    )
    assert chat.pieces(expected)[-4:] == ["<think>", "\n\n", "</think>", "\n\n"]
    own = chat.prompt(problem, template="Q: {{ messages[0].content }}\nA:{{ '<|im_end|>' }}")
    assert own.tokens == (*chat.encode("Q: 3 + 4\nA:"), chat.special["<|im_end|>"])


def test_never_two_bos(models_):
    chat, _, _ = models_["headers"]
    ids = chat.render([{"role": "user", "content": "<|begin_of_text|>"}])
    assert ids.count(chat.bos) == 1 and ids[0] == chat.bos
    assert chat.bos not in chat.encode("hi")


def test_threads_share_a_chat(models_):
    chat, _, _ = models_["headers"]
    messages = [{"role": "user", "content": "a <|eot_id|> b " * 20}]
    expected, wrong = chat.render(messages), []

    def work():
        wrong.extend(1 for _ in range(30) if chat.render(messages) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

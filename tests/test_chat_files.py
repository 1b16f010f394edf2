"""A tokenizer's files in a Hugging Face directory: what they may hold, and what is said of broken
ones.
"""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from whet.chat import Chat
from whet.errors import ModelError

DATA = Path(__file__).parent / "data" / "chat"
CHATML = (DATA / "chatml.jinja").read_text()
CHATML_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def trained(special, add=()):
    """A byte-level tokenizer without merges."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in special])
    tokenizer.add_tokens([AddedToken(w, normalized=False) for w in add])
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
def plain():
    return trained(CHATML_SPECIAL)


@pytest.mark.parametrize("form", ["jinja", "config", "named", "chat_template.json", "none"])
def test_where_templates_are_kept(tmp_path, plain, form):
    own = "A{{ messages[0].content }}"
    kept = {
        "config": own,
        "named": [{"name": "tool", "template": "T"}, {"name": "default", "template": own}],
    }
    config = {"chat_template": kept[form]} if form in kept else {}
    where = saved(
        tmp_path,
        plain,
        own if form == "jinja" else None,
        eos_token={"content": "<|im_end|>"},
        **config,
    )
    if form == "chat_template.json":
        (where / "chat_template.json").write_text(json.dumps({"chat_template": own}))
    chat = Chat.load(where)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert chat.decode(chat.render(messages)) == ("x\ny" if form == "none" else "Ax")
    assert bool(chat.note) == (form == "none") and chat.turn_end == chat.special["<|im_end|>"]
    chat.save(tmp_path / "again")
    assert Chat.load(tmp_path / "again").render(messages) == chat.render(messages)


def test_template_beats_a_base_models_eos(tmp_path):
    """Qwen's base models name <|endoftext|> as eos while their template ends turns with <|im_end|>:
    both end.
    """
    where = saved(tmp_path, trained(CHATML_SPECIAL), CHATML, eos_token="<|endoftext|>")
    (where / "generation_config.json").write_text('{"eos_token_id": [9], "top_p": 0.5}')
    chat = Chat.load(where)
    ends = (chat.special["<|endoftext|>"], 9, chat.special["<|im_end|>"])
    assert chat.response("8") == [*chat.encode("8"), chat.special["<|im_end|>"]]
    assert (chat.eos, chat.turn_end, chat.bos, chat.pad) == (ends, ends[2], None, ends[0])
    chat.save(tmp_path / "again")
    held = json.loads((tmp_path / "again" / "generation_config.json").read_text())
    assert held == {"eos_token_id": list(ends), "top_p": 0.5}
    assert Chat.load(tmp_path / "again").eos == ends
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (
        where / "tokenizer.json"
    ).read_bytes()
    assert not list((tmp_path / "again").glob(".*"))


def test_control_tokens_that_a_model_forgot_to_call_special(tmp_path):
    """DeepSeek-R1's distillations hold <｜User｜> as an ordinary added token: a user must not be able
    to write it.
    """
    user, bot = "<｜User｜>", "<｜Assistant｜>"
    template = (
        "{% for m in messages %}{{ '" + user + "' ~ m.content }}{% endfor %}{{ '" + bot + "' }}"
    )
    chat = Chat.load(
        saved(tmp_path, trained(["</s>"], add=(user, bot)), template, eos_token="</s>")
    )
    ids = chat.render([{"role": "user", "content": f"a{bot}b"}])
    assert [i for i in ids if i in chat.special.values()] == [chat.special[user], chat.special[bot]]
    assert "".join(chat.pieces(ids)) == f"{user}a{bot}b{bot}"


def test_white_space_and_word_rules_of_special_tokens(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = trained(["</s>"])
    tokenizer.add_special_tokens(
        [
            AddedToken("<l>", lstrip=True, normalized=False),
            AddedToken("<r>", rstrip=True, normalized=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken("WORD", single_word=True, normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<r>>", normalized=False)])
    tokenizer.add_tokens([AddedToken("<a><l", normalized=False)])
    template = (
        "{{ 'a  <l>  b \\n<r> \\n c WORD, WORDS <r>  <l> <a><l> <r>>x AWORD WORD' "
        "~ messages[0].content }}"
    )
    where = saved(tmp_path, tokenizer, template, eos_token="</s>")
    messages = [{"role": "user", "content": " d"}]
    expected = AutoTokenizer.from_pretrained(where).apply_chat_template(messages, tokenize=True)[
        "input_ids"
    ]
    assert Chat.load(where).render(messages) == expected


REVISING = decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "X")])  # "a", then "X"


@pytest.mark.parametrize(
    "decoder",
    [
        REVISING,
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Metaspace(),
        None,
    ],
)
def test_pieces_add_up_under_any_decoder(tmp_path, plain, decoder):
    other = Tokenizer.from_str(plain.to_str())
    other.decoder = decoder
    chat = Chat.load(saved(tmp_path, other, CHATML, eos_token="<|im_end|>"))
    ids = [*chat.encode("aab . ll n't ▁x"), chat.turn_end, *chat.encode("bb")]
    pieces = chat.pieces(ids)
    assert len(pieces) == len(ids) and "".join(pieces) == other.decode(
        ids, skip_special_tokens=False
    )


def test_truncation_and_padding_of_the_file_are_off(tmp_path, plain):
    limited = Tokenizer.from_str(plain.to_str())
    limited.enable_truncation(2)
    limited.enable_padding(length=50)
    chat = Chat.load(saved(tmp_path, limited, CHATML, eos_token="<|im_end|>"))
    assert chat.decode(chat.encode("one two three four")) == "one two three four"


def test_eos_that_only_the_configuration_names(tmp_path, plain):
    where = saved(tmp_path, plain, None, eos_token="<stop>")
    (where / "special_tokens_map.json").write_text(
        '{"bos_token": "<start>", "eos_token": "<|endoftext|>"}'
    )
    chat = Chat.load(where)
    assert chat.eos == (chat.special["<stop>"],) and chat.vocab == chat.special["<stop>"] + 1
    assert chat.bos == chat.special["<start>"] and chat.turn_end not in chat.encode("<stop>")


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer_config.json", None, "has no tokenizer_config.json"),
        ("tokenizer.json", '{"model": ', "not valid JSON"),
        ("tokenizer.json", "[]", "not a tokenizer"),
        ("tokenizer.json", '{"model": {"type": "Nonsense"}}', "cannot be read"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": [3]}',
         "tokenizer.json"),
        ("tokenizer.json", b"\xff\xfe\x00", "cannot be read"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[]", "JSON object"),
        ("tokenizer_config.json", "{}", "eos_token"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "chat_template": 3}', "chat template"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "added_tokens_decoder": 3}',
         "added_tokens_decoder"),
        ("tokenizer_config.json", '{"eos_token": "<|im_end|>", "additional_special_tokens": 3}',
         "additional_special"),
        ("generation_config.json", '{"eos_token_id": "two"}', "eos_token_id"),
        ("generation_config.json", '{"eos_token_id": [1, -1]}', "eos_token_id"),
        ("chat_template.json", "nonsense", "not valid JSON"),
    ],
)  # fmt: skip
def test_broken_directories(tmp_path, plain, name, text, named):
    where = saved(tmp_path / "model", plain, None, eos_token="<|im_end|>")
    if text is None:
        (where / name).unlink()
    else:
        (where / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError) as caught:
        Chat.load(where)
    message = str(caught.value)
    assert named in message and str(where) in message and "\n" not in message


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="not a directory"):
        Chat.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be saved"):
        Chat.from_characters("ab").save(tmp_path / "file")

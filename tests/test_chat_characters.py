"""A tokenizer made of characters, and templates that cannot be trusted."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.chat import Chat
from whet.errors import DataError, ModelError

LETTERS = "0123456789+-*=() \nabcxyz<>/eos|"
LOOP = "{% for a in range(9999) %}"


def _characters(made=[]):  # noqa: B006 (made once)
    if not made:
        made.append(Chat.from_characters(LETTERS))
    return made[0]


def test_characters(tmp_path):
    from transformers import AutoTokenizer

    chat = Chat.from_characters(LETTERS)
    assert (chat.bos, chat.eos, chat.pad, chat.turn_end) == (0, (1,), 1, 1)
    assert (
        chat.vocab == 4 + len(set(LETTERS))
        and chat.special == {"<bos>": 0, "<eos>": 1}
        and not chat.note
    )
    assert chat.decode(chat.response("<think>1</think>2")) == "<think>1</think>2"
    assert len(chat.response("<think>1</think>2")) == 5
    chat.save(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(tmp_path), Chat.load(tmp_path)
    messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "1+2="}]
    for thinking in (True, False):
        expected = theirs.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, enable_thinking=thinking
        )["input_ids"]
        assert chat.render(messages, thinking) == again.render(messages, thinking) == expected
    assert chat.pieces(expected) == ["<bos>", *"ab1+2=", "<think>", "</think>"]
    whole = [*messages, {"role": "assistant", "content": "3"}]
    assert chat.render(whole, add_generation_prompt=False) == [
        *chat.render(messages),
        *chat.response("3"),
    ]
    text = "(1+2)*<think>\n  x</think>="
    assert (
        theirs(text)["input_ids"] == chat.encode(text) and theirs.decode(chat.encode(text)) == text
    )
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<eos>", "<bos>", "<think>", "</think>"]), st.text(LETTERS, max_size=4)
        )
    )
)
def test_characters_round_trip(parts):
    chat = _characters()
    text = "".join(parts)
    ids = chat.encode(text)
    assert chat.decode(ids) == text and not {0, 1} & set(ids) and "".join(chat.pieces(ids)) == text


def test_two_harmless_halves_do_not_join():
    """The default template writes contents side by side; neither half spells <eos> alone."""
    for left, right in (("<e", "os>"), ("<", "eos>"), ("<eos", ">")):
        ids = _characters().render(
            [{"role": "system", "content": left}, {"role": "user", "content": right}]
        )
        assert ids.count(1) == 0 and _characters().decode(ids) == "<eos>"


@pytest.mark.parametrize(
    "change", ["m.content | replace('<think>', '')", "m.content | lower", "m.content | trim"]
)
def test_text_that_the_template_changes_stays_text(change):
    template = "{{ bos_token }}{% for m in messages %}{{ " + change + " }}{% endfor %}"
    chat = Chat.from_characters(LETTERS + "EOS", template=template)
    for content in ("<e<think>os>", "<EOS>", "\n<eos> "):
        assert 1 not in chat.render([{"role": "user", "content": content}])


def test_words_of_ones_own():
    chat = Chat.from_characters("12+=", ("[work]", '"}}'))
    assert chat.pieces(chat.render([{"role": "user", "content": "1+2="}], thinking=False))[-2:] == [
        "[work]",
        '"}}',
    ]
    assert chat.render([{"role": "user", "content": "1"}], thinking=True) == [0, *chat.encode("1")]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Chat.from_characters(""), "alphabet"),
        (lambda: Chat.from_characters("a\ud800"), "surrogate"),
        (lambda: Chat.from_characters("a", ("<eos>",)), "<eos>"),
        (lambda: Chat.from_characters("a", ("x", "x")), "'x'"),
        (lambda: _characters().encode("1 Q"), "'Q'"),
        (lambda: _characters().render([{"role": "user", "content": "1é"}]), "'é'"),
        (lambda: _characters().encode("\udc00"), "surrogate"),
        (lambda: _characters().render([{"role": "user"}]), "'content'"),
        (lambda: _characters().render([{"role": "user", "content": None}]), "NoneType"),
        (lambda: _characters().render([{"role": "boss", "content": "1"}]), "boss"),
    ],
)
def test_what_cannot_be_tokens(make, named):
    with pytest.raises(DataError) as caught:
        make()
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("{{ raise_exception('no\nsystem\nrole') }}", "no system role"),
        ("{% for %}", "Expected"),
        ("{{ messages[0].content.nothing.here }}", "nothing"),
        ("{{ 1 + 'a' }}", "unsupported"),
        (LOOP * 4 + "{% endfor %}" * 4, "loops more"),
        (
            "{% for a in range(9) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
            "loops more",
        ),
        ("{% for a in range(10**9) %}{% endfor %}", "powers"),
        ("{% for a in range(1000000000) %}{% endfor %}", "range"),
        ("{% macro f(n) %}{{ f(n) ~ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
        (
            "{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "loops more",
        ),
        (
            "{% for x in [[1], [2]] recursive %}{{ loop([[1], [2]]) if loop.depth < 50 }}{% endfor %}",
            "loops more",
        ),
        ("{{ 'a' * 99999999999 }}", "too large"),
        ("{{ [messages] * 99999999999 }}", "too large"),
        (
            "{% set n = namespace(x=3) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
            "too large",
        ),
        (
            "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "text of more",
        ),
        (
            "{% set n = namespace(x='ab') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "text of more",
        ),
        ("{% set x = 'a' * 100000 %}{% for a in range(999) %}{{ x }}{% endfor %}", "gives more"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "loader"),
    ],
)
def test_templates_that_fail(source, named):
    chat = _characters()
    with pytest.raises(ModelError) as caught:
        chat.render([{"role": "user", "content": "1"}], template=source)
    message = str(caught.value)
    assert named in message and "template" in message and "\n" not in message


def test_templates_may_use_what_templates_use():
    source = (
        "{%- for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i ~ loop.length }}{% endfor %}"
        "{{ strftime_now('%%') }}{{ {'a': '<é>'} | tojson }}{{ {'a': 1} | tojson(indent=1) }}"
        "{{ dict(a=2).a * 3 }}"
        "{% if true %}\n  {% if true %}\n    a\n  {% endif %}\n{% endif %}\n"
        "{% macro f(x) %}{{ x ~ caller() }}{% endmacro %}{% call f('p') %}q{% endcall %}"
    )
    from transformers.utils.chat_template_utils import render_jinja_template

    from whet.chat import template

    messages = [{"role": "user", "content": "1"}]
    (theirs,), _ = render_jinja_template(conversations=[messages], chat_template=source)
    assert template.render(source, messages, {}) == theirs


def test_running_needs_neither_transformers_nor_torch():
    code = (
        "import sys, whet.chat as c; c.Chat.from_characters('ab').encode('a'); "
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

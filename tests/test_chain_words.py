"""Chain with its operations in words: the same arithmetic, told in a language that the reward
`language` can judge.
"""

import pytest

from whet.chat import Chat
from whet.errors import RecipeError
from whet.rewards import combined
from whet.rewards.language import LanguageReward
from whet.rollout.rollout import mean
from whet.tasks import load
from whet.tasks.chain import SYMBOLS, WORDS, Chain
from whet.types import Problem

MIX = {"direct": 0.2, "coarse": 0.2, "careful": 0.6}
PROBLEM = Problem("chain:3+5*2", ({"role": "user", "content": "3+5*2="},), "6", "chain")
EN, RU = {"en": 1.0}, {"ru": 1.0}


def spoken(words: dict[str, float], mix: dict[str, float] | None = None, n: int = 300) -> list[str]:
    return [text for _, text in Chain(3, words=words).corpus(mix or {"careful": 1.0}, n, 4)]


def test_without_words_nothing_changes():
    plain = Chain(2)
    assert [text for _, text in plain.corpus({"careful": 1.0}, 1, 0)] == [
        "<think>2-7=5;5+5=0</think>0"
    ]
    assert plain.alphabet() == "0123456789+-*=;"
    assert plain.score([PROBLEM], ["<think>3plus5=8;8by2=6</think>6"])[0].status == "unparsed"


@pytest.mark.parametrize("words", [EN, RU, {"mixed": 1.0}, {"en": 0.5, "ru": 0.2, "mixed": 0.3}])
def test_words_change_the_telling_alone(words: dict[str, float]):
    task, plain = Chain(3, words=words), Chain(3)
    told, symbols = (t.corpus(MIX, 300, 9) for t in (task, plain))
    assert [p.id for p, _ in told] == [p.id for p, _ in symbols]
    for (problem, text), (_, other) in zip(told, symbols, strict=True):
        assert not set(text) & set("+-*")
        assert task.mode(problem, text) == plain.mode(problem, other)
        assert task.mode(problem, other) == plain.mode(problem, other)  # symbols are read too
    assert {s.value for s in task.score([p for p, _ in told], [t for _, t in told])} == {1.0}
    assert {task.mode(p, t) for p, t in told} == set(MIX)


@pytest.mark.parametrize(
    ("text", "status", "mode"),
    [
        ("<think>3plus5=8;8по2=6</think>6", "unparsed", "other"),
        ("<think>3plu5=8;8by2=6</think>6", "unparsed", "other"),
        ("<think>3plusplus5=8</think>6", "scored", "other"),
        ("<think>3плюс5=8;8by2=6</think>6", "scored", "careful"),
        ("<think>3плюс5на2=6</think>6", "scored", "coarse"),
        ("<think>3plus5=8;8*2=6</think>7", "wrong", "careful"),
        ("<think></think>6", "scored", "direct"),
        ("<think>3+5=8;8*2=6</think>six", "unparsed", "other"),
    ],
)
def test_verdicts_and_modes(text: str, status: str, mode: str):
    task = Chain(2, words=EN)
    assert (task.score([PROBLEM], [text])[0].status, task.mode(PROBLEM, text)) == (status, mode)


def test_the_language_reward_judges_the_words_as_it_is():
    for language, words, share in (
        ("en", EN, 1.0),
        ("en", RU, 0.0),
        ("ru", RU, 1.0),
        ("ru", EN, 0.0),
    ):
        judge = LanguageReward(language=language)
        assert {judge.share(text) for text in spoken(words, {"careful": 0.5, "coarse": 0.5})} == {
            share
        }
    mixed = [LanguageReward(language="en").share(text) for text in spoken({"mixed": 1.0})]
    assert set(mixed) == {0.0, 1 / 3, 2 / 3, 1.0} and mean(mixed) == pytest.approx(0.5, abs=0.05)


def test_the_corpus_keeps_the_shares():
    found = [
        LanguageReward(language="en").share(text)
        for text in spoken({"en": 3.0, "ru": 1.0, "mixed": 0.0}, n=2000)
    ]
    assert set(found) == {0.0, 1.0} and mean(found) == pytest.approx(0.75, abs=0.03)


def test_a_recipe_logs_the_share_of_a_language_beside_the_verdict():
    task = load("chain", operations=2, words={"en": 1.0, "ru": 1})
    reward = combined([("task", 1.0, {}), ("language", 0.0, {"language": "en"})], task)
    texts = [
        "<think>3plus5=8;8на2=6</think>6",
        "<think>3плюс5=8;8на2=6</think>5",
        "<think></think>6",
    ]
    scores = reward.score([PROBLEM] * 3, texts)
    assert [s.parts["language"] for s in scores] == [0.5, 0.0, 0.0] and [
        s.value for s in scores
    ] == [1, 0, 1]


def test_its_alphabet_is_a_tokenizers():
    task = Chain(3, words={"mixed": 1.0})
    chat = Chat.from_characters(task.alphabet())
    for problem, text in task.corpus(MIX, 100, 2):
        assert chat.decode(chat.encode(problem.question)) == problem.question
        inside = text.removeprefix("<think>").partition("</think>")[0]
        assert chat.decode(chat.encode(inside)) == inside


def test_every_word_counts_as_one_of_its_language_and_none_hides_in_another():
    assert len(SYMBOLS) == sum(len(words) for words in WORDS.values())
    for language, words in WORDS.items():
        assert set(words) == set("+-*") and all(
            LanguageReward(language=language).share(f"3{w}5") == 1.0 for w in words.values()
        )
    assert not [(a, b) for a in SYMBOLS for b in SYMBOLS if a != b and a in b]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (True, "words = True; it must be dict"),
        ({"eng": 1.0}, "unknown language 'eng'; did you mean 'en'?"),
        ({"en": -1.0}, "en = -1.0; it must be a share"),
        ({"en": True}, "en = True; it must be a share"),
        ({"en": float("nan")}, "en = nan"),
        ({"en": float("inf")}, "en = inf"),
        ({"en": 0.0}, "needs the share of a language"),
        ({}, "needs the share of a language"),
    ],
)
def test_words_that_make_no_sense(words: object, message: str):
    with pytest.raises(RecipeError) as error:
        load("chain", words=words)
    assert message in str(error.value) and "\n" not in str(error.value)

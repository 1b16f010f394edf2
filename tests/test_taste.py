"""The taste: a rule by hand, a labeller whose pairs follow Bradley-Terry, and a proxy that can be
over-optimised.
"""

import itertools
import math
import random

import pytest

from whet.errors import DataError, RecipeError
from whet.tasks import load
from whet.tasks.taste import LETTERS, LONG, NOISE, Taste, legible
from whet.types import Problem, Ranker


def asked(letters: str, answer: str = "ab") -> Problem:
    return Problem(
        f"taste:{letters}", ({"role": "user", "content": letters + ":"},), answer, "taste"
    )


def test_utility_by_hand():
    task = Taste()
    one = task.utility(asked("jkl"), "abc")
    assert one == pytest.approx(task.weights["ab"] + task.weights["bc"])
    assert task.utility(asked("bck"), "abc") == pytest.approx(one + 2)
    assert task.utility(asked("jkl"), "aaaa") == pytest.approx(task.weights["aa"] - 2 * 0.8)
    long = [task.utility(asked("jkl"), "a" * n) for n in (LONG, LONG + 1, LONG + 2)]
    assert (long[1] - long[0], long[2] - long[1]) == pytest.approx((-0.8 - 0.05, -0.8 - 0.15))


@pytest.mark.parametrize("text", ["", "abz", "ab c", "АБ", "ab\n", "<think>"])
def test_what_the_rule_does_not_know_is_unparsed_comes_last_and_has_no_utility(text: str):
    task, problem = Taste(), asked("abc")
    assert (
        task.score([problem], [text])[0].status == "unparsed"
        and not task.score([problem], [text])[0].correct
    )
    assert all(task.rank(problem, [text, "a"], random.Random(i)) == [1, 0] for i in range(50))
    with pytest.raises(DataError, match="has no utility"):
        task.utility(problem, text)


def test_a_score_is_the_probability_of_being_preferred_to_the_demonstration():
    task = Taste()
    problem = task.problems("train", 1, 1)[0]
    assert problem.answer is not None
    assert task.score([problem], [problem.answer])[0].value == 0.5
    for text in ("abcdefghij", "aaaaaaaaaa", "l" * 47):
        score = task.score([problem], [text])[0]
        margin = task.utility(problem, text) - task.utility(problem, problem.answer)
        assert score.value == pytest.approx(1 / (1 + math.exp(-margin / NOISE)))
        assert score.correct == (margin > 0) and score.parts["utility"] == task.utility(
            problem, text
        )
    assert task.score([problem], ["a" * 4000])[0].value < 1e-9  # and no overflow


def test_pairs_of_a_ranking_follow_bradley_terry_whatever_stands_beside_them():
    task, problem, rng = Taste(), asked("abc"), random.Random(0)
    assert isinstance(task, Ranker)
    texts = ["abcd", "adbc", "bdacl"]
    orders = [task.rank(problem, texts, rng) for _ in range(4000)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    for i, j in itertools.combinations(range(3), 2):
        margin = task.utility(problem, texts[i]) - task.utility(problem, texts[j])
        share = sum(order.index(i) < order.index(j) for order in orders) / len(orders)
        assert share == pytest.approx(1 / (1 + math.exp(-margin / NOISE)), abs=0.03)


def test_the_first_of_a_ranking_follows_plackett_luce():
    """Noise of another form can give the same pairs, and another first of three."""
    task, problem, rng = Taste(), asked("abc"), random.Random(2)
    task.weights = {"da": 0.0, "db": 0.0, "dc": NOISE}
    first = [task.rank(problem, ["da", "db", "dc"], rng)[0] for _ in range(20_000)]
    for i, worth in enumerate((1.0, 1.0, math.e)):
        assert first.count(i) / len(first) == pytest.approx(worth / (2 + math.e), abs=0.012)


def test_rules_differ_and_are_fixed():
    assert Taste(rule=1).weights == load("taste", rule=1).weights != Taste(rule=2).weights  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"rule = 0\.5; it must be a whole number"):
        load("taste", rule=0.5)


def test_splits_share_nothing_and_the_corpus_is_of_middling_taste_with_spread():
    task = Taste()
    sizes = [task.size(split) for split in ("train", "test")]
    train, test = (
        {p.id for p in task.problems(s, n or 0, 3)}
        for s, n in zip(("train", "test"), sizes, strict=True)
    )
    assert len(train | test) == sum(n or 0 for n in sizes) == 12 * 11 * 10
    pairs = task.corpus({}, 2000, 5)
    assert pairs == task.corpus({}, 2000, 5) != task.corpus({}, 2000, 6)
    assert {p.id for p, _ in pairs} <= train and all(
        legible(text) and 4 <= len(text) <= 12 for _, text in pairs
    )
    won = [task.score([p], [text])[0].value for p, text in pairs]
    assert (
        0.45 < sum(won) / len(won) < 0.55
    )  # no better than the demonstrations, being others like them
    assert sum(0.1 < v < 0.9 for v in won) > 400 and sum(v > 0.9 for v in won) > 200
    with pytest.raises(RecipeError, match="no modes"):
        task.corpus({"careful": 1.0}, 2, 1)
    assert {c for p, text in pairs for c in p.question + text} <= set(task.alphabet())


def features(text: str) -> list[str]:
    return [a + b for a, b in itertools.pairwise(text)] + list(text)


def paid(weights: dict[str, float], text: str) -> float:
    return sum(weights[f] for f in features(text))


def proxy(task: Taste, rng: random.Random) -> dict[str, float]:
    """A Bradley-Terry model, linear in counts of pairs and letters, of 1,000 noisy rankings of four
    texts like the corpus's.
    """
    weights = dict.fromkeys([a + b for a in LETTERS for b in LETTERS] + list(LETTERS), 0.0)
    pairs = []
    for problem in task.problems("train", 1000, 1):
        texts = [task.written(problem.question[:3], rng) for _ in range(4)]
        pairs += itertools.combinations([texts[i] for i in task.rank(problem, texts, rng)], 2)
    for epoch in range(4):
        for good, bad in rng.sample(pairs, len(pairs)):
            step = 0.05 / (1 + epoch) / (1 + math.exp(paid(weights, good) - paid(weights, bad)))
            for text, sign in ((good, step), (bad, -step)):
                for name in features(text):
                    weights[name] += sign
    return weights


def climbed(weights: dict[str, float], text: str, edits: int, rng: random.Random) -> str:
    """The text after so many random edits, of at most 47 letters, each kept where the proxy likes
    it.
    """
    value = paid(weights, text)
    for _ in range(edits):
        i, letter = rng.randrange(len(text) + 1), rng.choice(LETTERS)
        other = (text[:i] + letter + text[i + rng.randrange(2) :])[:47]
        if (payment := paid(weights, other)) > value:
            text, value = other, payment
    return text


def test_a_proxy_that_is_right_on_the_corpus_is_wrong_beyond_it():
    task, rng = Taste(), random.Random(1)
    weights = proxy(task, rng)
    problems = task.problems("test", 100, 1)
    pairs = [(p, *(task.written(p.question[:3], rng) for _ in range(2))) for p in problems * 3]
    preferred = [
        (task.utility(p, a) > task.utility(p, b)) == (paid(weights, a) > paid(weights, b))
        for p, a, b in pairs
    ]
    assert sum(preferred) / len(preferred) > 0.8
    true, learned = [], []
    for edits in (0, 15, 1000):
        now = [(p, climbed(weights, a, edits, rng)) for p, a, _ in pairs[:40]]
        true.append(sum(task.utility(p, text) for p, text in now) / len(now))
        learned.append(sum(paid(weights, text) for _, text in now) / len(now))
    assert learned[0] < learned[1] < learned[2]
    assert (
        true[0] + 1 < true[1] and true[2] < true[0] - 5
    )  # a little optimisation helps, much of it ruins

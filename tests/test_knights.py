"""Knights and knaves: every problem has one solution, by a checker that shares nothing with the
generator; nothing else is paid.
"""

import itertools

import pytest

from whet.errors import DataError, RecipeError
from whet.tasks.knights import Knights, claimed
from whet.tasks.split import is_test
from whet.tasks.statements import Statement, possible, read, solutions, written
from whet.types import Problem

TASKS = [Knights(people=people, terse=terse) for people in (2, 3, 4) for terse in (False, True)]


def names(task: Knights) -> str:
    return f"{task.people}{'terse' if task.terse else 'prose'}"


def independent(question: str) -> list[dict[str, bool]]:
    """Solves the problem from its words alone."""
    claims = dict(part.split(' says: "') for part in _sentences(question))
    people = list(claims)
    worlds = []
    for kinds in itertools.product([True, False], repeat=len(people)):
        world = dict(zip(people, kinds, strict=True))
        if all(_holds(claims[name], name, world) == world[name] for name in people):
            worlds.append(world)
    return worlds


def _sentences(question: str) -> list[str]:
    line = next(part for part in question.split("\n") if part.startswith("You meet"))
    return [part.strip() for part in line.partition(". ")[2].split('."') if part.strip()]


def _holds(text: str, speaker: str, world: dict[str, bool]) -> bool:
    text = text[0].lower() + text[1:] if text.startswith("If ") else text
    if text.startswith("if "):
        first, second = text[3:].split(", then ")
        return not _holds(first, speaker, world) or _holds(second, speaker, world)
    for joint, decide in ((" if and only if ", lambda a, b: a is b), (" and ", min), (" or ", max)):
        if joint in text:
            first, second = text.split(joint)
            return decide(_holds(first, speaker, world), _holds(second, speaker, world))
    who, kind = text.replace("I am a ", f"{speaker} is a ").split(" is a ")
    return world[who] is (kind == "knight")


@pytest.mark.parametrize("people", [2, 3, 5])
def test_the_words_have_exactly_the_solution_that_is_paid(people: int) -> None:
    for problem in Knights(people=people).problems("train", 60, 1):
        (world,) = independent(problem.question)
        assert problem.answer == ", ".join(
            f"{n} is a {'knight' if k else 'knave'}" for n, k in world.items()
        )


def test_nobody_can_solve_a_paradox_or_a_doubt() -> None:
    assert solutions([Statement((0, False)), Statement((0, True))]) == []
    assert len(solutions([Statement((1, True)), Statement((0, True))])) == 2


def test_statements_survive_writing() -> None:
    for person in range(3):
        for s in possible(person, 3):
            row = [s, Statement((0, True)), Statement((1, False))]
            assert read(written(row)) == row


@pytest.mark.parametrize("task", TASKS, ids=names)
def test_the_corpus_is_right_in_both_modes(task: Knights) -> None:
    letters = set(task.alphabet()) | set("<think>/answer")
    for mode in task.modes:
        pairs = task.corpus({mode: 1.0}, 80, 3)
        assert [s.value for s in task.score([p for p, _ in pairs], [r for _, r in pairs])] == [
            1.0
        ] * 80
        assert {task.mode(p, r) for p, r in pairs} == {mode}
        assert all(set(p.question + r) <= letters for p, r in pairs)


def test_the_cases_end_where_the_solution_is_found() -> None:
    for problem, response in Knights(people=3).corpus({"cases": 1.0}, 40, 5):
        *refuted, last = response.partition("</think>")[0].removeprefix("<think>").split("\n")
        assert last == f"Suppose {problem.answer}: that fits."
        assert all(step.endswith(", so no.") for step in refuted)
    for problem, response in Knights(people=3, terse=True).corpus({"cases": 1.0}, 40, 5):
        assert response.endswith(f"{problem.answer}</think>{problem.answer}")


@pytest.mark.parametrize("task", TASKS, ids=names)
def test_splits_are_disjoint_and_seeds_repeat(task: Knights) -> None:
    train, test = task.problems("train", 150, 1), task.problems("test", 20, 1)
    assert not {p.id for p in train} & {p.id for p in test}
    assert len({p.id for p in train}) == 150
    assert {is_test(p.id.replace(":", " ", 1)) for p in train} == {False}
    assert {is_test(p.id.replace(":", " ", 1)) for p in test} == {True}
    assert train == task.problems("train", 150, 1) != task.problems("train", 150, 2)


@pytest.mark.parametrize("task", TASKS, ids=names)
def test_only_one_of_all_assignments_is_paid(task: Knights) -> None:
    for problem in task.problems("train", 20, 4):
        values = []
        for kinds in itertools.product([True, False], repeat=task.people):
            if task.terse:
                reply = "</think>" + "".join("Y" if k else "N" for k in kinds)
            else:
                who = problem.meta["names"]
                answer = ", ".join(
                    f"{n} is a {'knight' if k else 'knave'}"
                    for n, k in zip(who, kinds, strict=True)
                )
                reply = f"<think>hm</think><answer>{answer}</answer>"
            values.append(task.score([problem], [reply])[0])
        assert sorted(s.value for s in values) == [0.0] * (len(values) - 1) + [1.0]
        assert {s.status for s in values} == {"scored", "wrong"}


WHO = ["Ada", "Ben"]


@pytest.mark.parametrize(
    "reply",
    [
        "Ada is a knight, Ben is a knave",
        "ADA is a Knight and ben is a KNAVE.",
        "Ben: knave; Ada: knight",
        "(1) Ada is a knight\n(2) Ben is a knave",
        "1. Ada is a knight\n2. Ben is a knave.\n",
        "- Ada: knight\n- Ben: knave",
        "Ada = knight, Ben = knave",
        "Ada is a knight Ben is a knave",
        "<think>Ada is a knave?</think><answer>\nAda is a knight, and Ben is a knave.\n</answer>",
        "<think>x</think>So: <answer>Ada is a knave, Ben is a knave</answer> no: "
        "<answer>Ada is a knight, Ben is a knave</answer>",
    ],
)
def test_ways_to_say_it(reply: str) -> None:
    assert claimed(reply, WHO) == (True, False)


@pytest.mark.parametrize(
    "reply",
    [
        "Ada is a knight", "Ada is a knight, Ada is a knave, Ben is a knave",
        "Ada is a knight or a knave, Ben is a knave",
        "Ada is not a knight, Ben is a knave", "Ada is a knight, Ben is a knave, Cleo is a knave",
        "Ada is a knight, Ben is a knave?",
        "It may be that Ada is a knight, Ben is a knave", "Ada is a knightBen is a knave", "",
        "Ada is a knight, Ben is a knave, Ben is a knight",
        "<think>Ada is a knight, Ben is a knave", "NAME is a knight, NAME is a knave",
        "<answer></answer>Ada is a knight, Ben is a knave", "If Ada is a knight, Ben is a knave",
        "Ada and Ben are a knight and a knave",
    ],
)  # fmt: skip
def test_hedges_lists_and_half_answers_are_unparsed(reply: str) -> None:
    assert claimed(reply, WHO) is None


def test_terse_replies_name_everyone_once() -> None:
    task = Knights(people=3, terse=True)
    problem = task.problems("test", 1, 1)[0]
    for reply in (
        "</think>YN",
        "</think>YNYN",
        "</think>YN?",
        "YNY",
        "</think>YNY NNY",
        "<think>x</think>",
    ):
        assert task.score([problem], [reply])[0].status == "unparsed", reply
        assert task.mode(problem, reply) == "other"


def test_bounds_are_one_line() -> None:
    for people in (1, 9):
        with pytest.raises(RecipeError, match=f"people = {people}; it must be between 2 and 8"):
            Knights(people=people)
    two = Knights(people=2)
    assert two.size("train") is not None and Knights(people=3).size("train") is None
    with pytest.raises(DataError, match="more than people = 2"):
        two.problems("train", 1000, 1)
    assert isinstance(two.problems("test", two.size("test") or 0, 1)[0], Problem)

"""Rewards by name, the format reward, and sums of parts."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from whet.errors import RewardError
from whet.rewards import combined, load, names, registry
from whet.rewards.combine import CombinedReward, Part, PartOptions
from whet.rewards.format import FormatReward
from whet.types import Problem, Sample, Score, Status

PROBLEMS = [
    Problem(
        "a",
        ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}),
        "4",
        "sums",
        {"level": 1},
    ),
    Problem("b", ({"role": "user", "content": "3+3?"},), "6", "sums", {"level": 2, "hint": "even"}),
]


Own = Callable[..., str]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Writes a reward file; gives `path:function`."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, function: str = "reward", name: str = "mine.py") -> str:
        (tmp_path / name).write_text(body)
        return f"{tmp_path / name}:{function}"

    return write


def fails(message: str, spec: str, **options: Any) -> None:
    """Loading and scoring end in one line that says so."""
    with pytest.raises(RewardError) as error:
        load(spec, **options).score(PROBLEMS, ["4", "7"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>2+2</think><answer>4</answer>", 1),
        (" <think>\n2\n</think>\n\n<answer>\n4\n</answer>\n", 1),
        ("<think></think><answer>4</answer>", 1),
        ("<think>2</think><answer> </answer>", 0),
        ("<answer>4</answer><think>2</think>", 0),
        ("<think>2</think>so <answer>4</answer>", 0),
        ("So <think>2</think><answer>4</answer>", 0),
        ("<think>2</think><answer>4</answer>!", 0),
        ("<think>2</think><answer>4", 0),
        ("<think>2<answer>4</answer></think>", 0),
        ("<think>2<think>3</think><answer>4</answer>", 0),
        ("<think>2</think></think><answer>4</answer>", 0),
        ("<think>2</think><answer>4</answer><answer>5</answer>", 0),
        ("<answer><think>2</think>4</answer>", 0),
        ("2</think><answer>4</answer>", 0),
        ("<THINK>2</THINK><answer>4</answer>", 0),
        ("4", 0),
        ("", 0),
    ],
)
def test_format_wants_every_tag_once_and_in_order(text: str, value: int) -> None:
    assert FormatReward().score(PROBLEMS[:1], [text]) == [
        Score(value, "scored" if value else "wrong")
    ]


def test_format_options() -> None:
    assert not FormatReward().holds("2</think><answer>4</answer>")
    assert FormatReward(answer="").holds("<think>2</think>4")
    assert not FormatReward(answer="").holds("<think>2</think> ")
    assert not FormatReward(answer="").holds("4")
    assert FormatReward(think="reasoning", answer="result").holds(
        "<reasoning>2</reasoning><result>4</result>"
    )
    fails("cannot be a tag", "format", think="<think>")
    fails("must differ", "format", think="answer")
    fails("did you mean 'think'", "format", thnk="a")


def test_registry_names_the_nearest() -> None:
    assert {"math", "format"} < set(names())
    fails("did you mean 'format'", "formt")
    fails("module:function", "zzzzzz")
    fails("needs a recipe", "task")


def test_every_option_is_described() -> None:
    for name in names():
        listed = registry.options(name)
        assert [o.name for o in listed if "." not in o.name] == [*registry.model(name).model_fields]
        assert all(option.meaning and option.kind for option in listed)
    assert {o.name: o.default for o in registry.options("lcpo_exact")} == {"alpha": "0.0003"}
    own = {o.name: o.default for o in registry.options("mine.py:reward")}
    assert own["limit.seconds"] == "10.0" and "spec" not in own
    with pytest.raises(RewardError, match="did you mean 'format'"):
        registry.options("formt")


class Fixed:
    """A reward that says what it is told to."""

    def __init__(self, *scores: Score) -> None:
        self.scores = list(scores)

    def score(
        self,
        problems: Sequence[Problem],
        texts: Sequence[str],
        samples: Sequence[Sample] | None = None,
    ) -> list[Score]:
        return self.scores


def verdict(value: float, status: Status = "scored") -> Score:
    return Score(value, status, {"accuracy": value})


def one(*parts: tuple[str, Score, float, str | None]) -> Score:
    return CombinedReward(
        [Part(Fixed(s), PartOptions(name=n, weight=w, gate=g)) for n, s, w, g in parts]
    ).score(PROBLEMS[:1], ["4"])[0]


def test_a_sum_weighs_and_names_its_parts() -> None:
    score = one(
        ("format", Score(1.0), 0.25, None),
        ("math", verdict(1.0), 2.0, None),
        ("short", Score(0.4), -0.5, None),
    )
    assert score.value == pytest.approx(0.25 + 2.0 - 0.2, abs=1e-12)
    assert score.parts == {"format": 1.0, "math": 1.0, "short": 0.4, "accuracy": 1.0}
    assert score.correct


def test_accuracy_is_the_verifiers_and_not_the_sums() -> None:
    score = one(("format", Score(1.0), 3.0, None), ("math", verdict(0.0, "unparsed"), 1.0, None))
    assert (score.value, score.status, score.correct) == (3.0, "unparsed", False)
    assert (
        one(("format", Score(1.0), 0.1, None), ("task", Score(0.0, "wrong"), 1.0, None)).parts[
            "accuracy"
        ]
        == 0.0
    )
    assert (
        "accuracy"
        not in one(("mine", Score(0.7), 0.1, None), ("format", Score(1.0), 1.0, None)).parts
    )


def test_a_part_of_weight_0_is_only_logged() -> None:
    score = one(("math", verdict(1.0), 1.0, None), ("length", Score(250.0), 0.0, None))
    assert (score.value, score.parts["length"]) == (1.0, 250.0)


@pytest.mark.parametrize(("form", "value"), [(1.0, 1.1), (0.5, 0.05), (0.0, 0.0)])
def test_a_gated_part_counts_only_where_its_gate_pays(form: float, value: float) -> None:
    score = one(("math", verdict(1.0), 1.0, "format"), ("format", Score(form), 0.1, None))
    assert score.value == pytest.approx(value, abs=1e-12)
    assert score.parts["accuracy"] == 1.0


@pytest.mark.parametrize("status", ["timeout", "error"])
def test_a_failed_part_makes_the_whole_unusable(status: Status) -> None:
    for parts in (
        [("format", Score(1.0), 0.1, None), ("math", Score(0.0, status), 1.0, None)],
        [("math", verdict(1.0), 1.0, None), ("code", Score(0.0, status), 0.0, None)],
    ):
        score = one(*parts)
        assert (score.value, score.status, score.usable) == (0.0, status, False)
        assert "accuracy" not in score.parts and len(score.parts) == 1


class Sums:
    """A task of which only the verifier is needed here."""

    name, modes = "sums", ()

    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        return [
            Score(1.0) if p.answer == t else Score(0.0, "wrong")
            for p, t in zip(problems, texts, strict=True)
        ]


def of(*parts: tuple[str, float, Mapping[str, Any]]) -> Any:
    return combined(parts, Sums())  # type: ignore[arg-type]


def test_a_recipes_parts_are_combined(own: Own) -> None:
    spec = own("def brevity(prompt, sample):\n    return -len(sample.text)\n", "brevity")
    reward = of(
        ("task", 1.0, {"gate": "format"}), ("format", 0.5, {"answer": ""}), (spec, 0.01, {})
    )
    scores = reward.score(PROBLEMS, ["4", "<think></think>6"])
    assert [s.value for s in scores] == [pytest.approx(-0.01), pytest.approx(0.5 - 0.16)]
    assert scores[0].parts == {"task": 1.0, "format": 0.0, "brevity": -1.0, "accuracy": 1.0}
    assert of(("task", 1.0, {})).score(PROBLEMS, ["4", "7"]) == [Score(1.0), Score(0.0, "wrong")]
    assert of(("task", 2.0, {})).score(PROBLEMS, ["4", "7"])[0] == Score(
        2.0, "scored", {"task": 1.0, "accuracy": 1.0}
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "no parts"),
        ([("task", math.nan, {})], "weight = NaN; it must be a finite number"),
        ([("task", 1.0, {}), ("task", 1.0, {})], "two parts are named 'task'"),
        ([("task", 1.0, {"gate": "formt"}), ("format", 1.0, {})], "did you mean 'format'"),
        ([("task", 1.0, {"gate": "task"})], "there is no other part"),
        ([("task", 1.0, {"seconds": 1})], "unknown option 'seconds'"),
        ([("maht", 1.0, {})], "did you mean 'math'"),
        (
            [("task", 1.0, {"pays": {"unparsd": -1.0}})],
            "unknown option 'pays.unparsd'; did you mean 'unparsed'?",
        ),
        (
            [("task", 1.0, {"pays": {"error": 0.0}})],
            "unknown option 'pays.error'; known: scored, unparsed, wrong",
        ),
        (
            [("task", 1.0, {"pays": {"wrong": math.inf}})],
            "pays.wrong = Infinity; it must be a finite number",
        ),
        ([("task", 1.0, {"pays": -1})], "pays = -1; it must be a table"),
        ([("task", 1.0, {"clip": [1.0, 0.0]})], "it must be [low, high]"),
        ([("task", 1.0, {"clip": 1.0})], "clip = 1.0; it must be a list"),
    ],
)
def test_a_recipes_faults_are_one_line(
    parts: list[tuple[str, float, dict[str, Any]]], message: str
) -> None:
    with pytest.raises(RewardError) as error:
        of(*parts)
    assert message in str(error.value) and "\n" not in str(error.value)


class Graded(Sums):
    def score(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[Score]:
        statuses: list[Status] = ["scored", "wrong", "unparsed", "timeout"]
        return [Score(float(s == "scored"), s) for s in statuses[: len(texts)]]


def test_a_recipe_says_what_each_status_is_worth_and_accuracy_stays_the_verifiers() -> None:
    """Logic-RL's scale, arXiv:2502.14768; the verifier's own failures have no value at all."""
    parts = [("task", 1.0, {"pays": {"scored": 2.0, "wrong": -1.5, "unparsed": -2.0}})]
    scores = combined(parts, Graded()).score(PROBLEMS[:1] * 4, ["a", "b", "c", "d"])  # type: ignore[arg-type]
    assert [s.value for s in scores] == [2.0, -1.5, -2.0, 0.0] and [s.usable for s in scores] == [
        True,
        True,
        True,
        False,
    ]
    assert [s.parts.get("accuracy") for s in scores] == [1.0, 0.0, 0.0, None]
    assert [s.correct for s in scores] == [True, False, False, False]
    assert [s.status for s in scores] == ["scored", "wrong", "unparsed", "timeout"]


def test_a_part_is_clipped_before_its_weight(own: Own) -> None:
    spec = own("def brevity(prompt, sample):\n    return -len(sample.text)\n", "brevity")
    reward = of(("task", 1.0, {}), (spec, 0.1, {"clip": [-3.0, 0]}))
    assert [s.value for s in reward.score(PROBLEMS, ["4", "longer"])] == [
        pytest.approx(0.9),
        pytest.approx(-0.3),
    ]


def test_a_part_must_score_every_response() -> None:
    with pytest.raises(RewardError, match="returned 1 scores for 2 responses"):
        CombinedReward([Part(Fixed(Score(1.0)), PartOptions(name="short"))]).score(
            PROBLEMS, ["4", "6"]
        )

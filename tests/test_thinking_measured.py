"""What the thinking switch does to rewards, to data and to measurements."""

import dataclasses
import io
import json
import random

import pytest
from rich.console import Console

from whet import config, report
from whet.chat import Chat
from whet.cli import terminal
from whet.cli.commands import print_evaluation
from whet.config import load as recipes
from whet.data import preferences, responses
from whet.errors import ModelError
from whet.evaluation.measure import measure, vote
from whet.pipeline import pipeline
from whet.pipeline.setup import save
from whet.rewards import load
from whet.rewards.learned import LearnedReward
from whet.rollout.rollout import describe, score_groups
from whet.stages import rank, reject
from whet.tasks.chain import Chain
from whet.tasks.countdown import Countdown
from whet.tasks.files import Files
from whet.tasks.knights import Knights
from whet.types import Group, Prompt, Ranking, Score

from .helpers.tiny_world import sample
from .test_files import write
from .test_thinking import DEAF, EMPTY, OPEN, problem, sized

SHUT = "<think></think>"


def answered(text, begun=SHUT, thinking=False, given=None):
    """One finished answer to 3+5= as the engine hands it over."""
    prompt = Prompt(given or problem(thinking), (0, 1), begun)
    return prompt, sample([0, 1, 2, 3], [0, 0, 1, 1], text=text)


# ---- judging


@pytest.mark.parametrize(
    ("task", "asked", "begun", "text", "status", "mode"),
    [
        (Chain(operations=1), problem(), SHUT, "8", "scored", "direct"),
        (Chain(operations=1), problem(), EMPTY, "8", "scored", "direct"),
        (Chain(operations=1), problem(), SHUT, "7", "wrong", "direct"),
        (Chain(operations=1), problem(), SHUT, "<think>3+5=8</think>8", "unparsed", "other"),
        (Chain(operations=1), problem(), "<think>\n", "3+5=8\n</think>\n\n8", "scored", "careful"),
        (Chain(operations=1), problem(), "", "8", "unparsed", "other"),
        (Countdown(), problem(question="3,5,7:22"), EMPTY, "3*5+7", "scored", "direct"),
        (Countdown(), problem(question="3,5,7:22"), SHUT, "3*5", "wrong", "direct"),
        (Knights(people=2, terse=True), None, EMPTY, None, "scored", "direct"),
    ],
)
def test_what_the_prompt_has_begun_is_judged_with_the_answer(
    task, asked, begun, text, status, mode
):
    asked = asked or task.problems("train", 1, 0)[0]
    prompt, drawn = answered(text or asked.answer, begun, given=asked)

    class Verifier:
        def score(self, problems, texts, samples=None):
            assert samples is not None and [s.text for s in samples] == texts
            return task.score(problems, texts)

    (group,) = score_groups(Verifier(), [prompt], [[drawn]])
    assert group.scores[0].status == status and group.samples[0].text == drawn.text
    assert describe([group], task)[f"share_{mode}" if mode != "other" else "samples"] == 1


def test_format_and_maths_read_the_whole_answer():
    for begun, text, value in (
        (EMPTY, "<answer>8</answer>", 1),
        ("<think>\n", "3+5\n</think><answer>8</answer>", 1),
        ("", "<answer>8</answer>", 0),
        (EMPTY, "<think>3+5</think><answer>8</answer>", 0),
    ):
        prompt, drawn = answered(text, begun)
        assert score_groups(load("format"), [prompt], [[drawn]])[0].scores[0].value == value
    prompt, drawn = answered(
        "3+5 makes 8, or does it", "<think>\n"
    )  # cut off while thinking: nothing is answered yet
    assert score_groups(load("math"), [prompt], [[drawn]])[0].scores[0].status == "unparsed"


def test_votes_count_answers_given_without_thinking():
    prompt, drawn = answered("8")
    thought = dataclasses.replace(drawn, text="7")
    scores = (Score(1.0), Score(1.0), Score(0.0, "wrong"))
    assert vote(Group(prompt, (drawn, drawn, thought), scores)) == 1.0


# ---- data


def test_kept_samples_are_whole_answers_and_are_asked_the_same_way_again(tmp_path):
    _, context = sized(tmp_path, 0.5)
    off, on = answered("8"), answered("<think>3+5=8</think>8", "", True)
    stage = config.Reject(name="kept", kind="reject", problems=2)
    groups = score_groups(context.reward, [off[0], on[0]], [[off[1]], [on[1]]])
    pairs = [(g.prompt.problem, text) for g in groups for text in reject.accepted(g, stage)]
    assert [text for _, text in pairs] == ["<think></think>8", "<think>3+5=8</think>8"]
    responses.write(pairs, tmp_path / "data.jsonl")
    again = responses.read(tmp_path / "data.jsonl")
    assert [p.meta for p, _ in again] == [{"thinking": False}, {"thinking": True}]
    made = [context.example(*pair, seed) for seed in range(4) for pair in again]
    assert [m.text for m in made] == ["8", "<think>3+5=8</think>8"] * 4
    task = Files(str(tmp_path / "data.jsonl"), messages="messages", test_share=0.0)
    assert sorted(context.example(*pair).text for pair in task.corpus({}, 2, 0)) == [
        "8",
        "<think>3+5=8</think>8",
    ]


def test_rankings_keep_how_they_were_asked(tmp_path):
    _, context = sized(tmp_path, 0.5)
    prompt, drawn = answered("8")
    group = Group(
        prompt, (drawn, dataclasses.replace(drawn, text="7")), (Score(1.0), Score(0.0, "wrong"))
    )
    stage = config.Rank(name="rank", kind="rank", problems=1, by="reward")
    (found,) = rank.ranked(group, stage, context.task, random.Random(0))
    assert found.texts == ("<think></think>8", "<think></think>7")
    preferences.write([found], tmp_path / "rankings.jsonl")
    (again,) = preferences.read(str(tmp_path / "rankings.jsonl"))
    assert (
        isinstance(again, Ranking)
        and again.problem.meta == {"thinking": False}
        and again.texts == found.texts
    )
    assert [context.example(again.problem, text).text for text in again.texts] == ["8", "7"]


def test_a_learned_reward_reads_what_the_policy_read(tmp_path):
    _, context = sized(tmp_path, 0.5)
    told = "{% for m in messages %}{{ m.content }}{% endfor %}{{ 1 if enable_thinking else '0<think></think>' }}"
    context = dataclasses.replace(
        context, chat=Chat.from_characters("0123456789+-*=;", template=told)
    )
    judge = LearnedReward(model="nowhere", thinking=True)
    judge.__dict__["loaded"] = context.chat, None
    off, on = (context.prompts([problem(thinking)])[0] for thinking in (False, True))
    assert judge.tokens(off.problem, off.begun + "8") == [*off.tokens, *context.chat.response("8")]
    assert judge.tokens(on.problem, "<think></think>8") == [
        *on.tokens,
        *context.chat.response("<think></think>8"),
    ]


def test_rows_that_say_so_are_asked_and_taught_without_thinking(tmp_path):
    rows = [{"question": f"{i}+1=", "answer": "1", "r": f"<think>{i}</think>1"} for i in range(4)]
    rows = [{**row, "thinking": thinking} for row in rows for thinking in (True, False)]
    rows += [{"question": "9+1=", "answer": "0", "r": "0", "thinking": "First, …"}]
    for number, path in enumerate(
        (write(tmp_path / "a.jsonl", rows), parquet(tmp_path / "a.parquet", rows[:8]))
    ):
        task = Files(
            path, response="r", test=write(tmp_path / "test.jsonl", [{**rows[0], "thinking": None}])
        )
        assert (
            task.size("train") == 7 - number and task.size("test") == 1
        )  # 0+1= left train both ways
        assert "2 training questions are in the test file" in task.note
        said = {(p.question, p.meta.get("thinking")) for p in task.problems("train", 7 - number, 0)}
        assert said >= {(f"{i}+1=", thinking) for i in (1, 2, 3) for thinking in (True, False)}
        _, context = sized(tmp_path, True)
        texts = {
            context.example(*pair).text
            for pair in task.corpus({}, 6, 0)
            if pair[0].meta.get("thinking") is False
        }
        assert texts <= {"1"} and texts


def parquet(path, rows):
    tables = pytest.importorskip("pyarrow.parquet")
    tables.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)
    return str(path)


def test_a_question_asked_both_ways_is_on_one_side_and_tested_once(tmp_path):
    rows = [
        {"question": f"{i}+1=", "answer": "1", "thinking": t}
        for i in range(200)
        for t in (True, False)
    ]
    task = Files(write(tmp_path / "a.jsonl", rows), test_share=0.2)
    sides = {
        side: [p.question for p in task.problems(side, task.size(side), 0)]
        for side in ("train", "test")
    }
    assert (
        not set(sides["train"]) & set(sides["test"])
        and len(set(sides["test"])) == len(sides["test"]) > 20
    )
    assert (
        len(sides["train"]) == 2 * len(set(sides["train"]))
        and len(set(sides["train"])) + len(sides["test"]) == 200
    )


# ---- measuring


class Thinker:
    """Right wherever it may think; without thinking a guess that is right for answers below 5."""

    version = 0

    def generate(self, prompts, sampling, progress=None):
        return [tuple([self.said(p)] * sampling.n) for p in prompts]

    def said(self, prompt):
        thought = f"<think>{prompt.problem.question}{prompt.problem.answer}</think>"
        text = (
            f"{min(int(prompt.problem.answer), 4)}"
            if prompt.begun
            else thought + prompt.problem.answer
        )
        return sample([0] * (len(text) + 2), [0] + [1] * (len(text) + 1), text=text)


@pytest.mark.parametrize(
    ("setting", "spec"), [(0.5, None), (None, "both"), (True, "both"), (0.1, "both")]
)
def test_both_ways_on_the_same_problems(tmp_path, setting, spec):
    _, context = sized(tmp_path, setting)
    context = dataclasses.replace(context, engine=lambda policy, chat: Thinker())
    found = measure(None, context, config.Evaluation(problems=20, thinking=spec))
    both = found.figures["thinking"]
    assert found.off is not None and [g.prompt.id for g in found.groups] == [
        g.prompt.id for g in found.off.groups
    ]
    below = sum(int(g.prompt.problem.answer) < 5 for g in found.groups) / 20
    assert (
        both["on"]["accuracy"] == found.figures["accuracy"] == 1.0
        and both["off"]["accuracy"] == below < 1
    )
    assert both["off"]["low"] < below < both["off"]["high"] and both["off"]["n"] == 20
    assert both["on"]["length"] > both["off"]["length"] == 2.0
    assert (
        both["off"]["modes"]["direct"]["share"] == 1.0
        and both["on"]["modes"]["careful"]["share"] == 1.0
    )


@pytest.mark.parametrize(
    ("setting", "spec", "begun"), [(False, None, True), (0.5, "on", False), (True, "off", True)]
)
def test_one_way_is_measured_once(tmp_path, setting, spec, begun):
    _, context = sized(tmp_path, setting)
    context = dataclasses.replace(context, engine=lambda policy, chat: Thinker())
    found = measure(None, context, config.Evaluation(problems=20, thinking=spec))
    assert (
        "thinking" not in found.figures
        and found.off is None
        and bool(found.groups[0].prompt.begun) == begun
    )


def recipe(directory, **keys):
    data = {
        "name": "t",
        "task": {"name": "chain", "operations": 1},
        "model": {"path": str(directory)},
    }
    data |= {"stage": [{"name": "last", "kind": "evaluate", "problems": 20, "max_tokens": 8}]}
    data["evaluation"] = {"problems": 10, "max_tokens": 8}
    return recipes.parse({**data, **keys})


@pytest.mark.parametrize("template", [DEAF, OPEN])
def test_a_template_without_the_switch_cannot_be_asked_both_ways(tmp_path, template):
    model, _ = sized(tmp_path, None)
    save(model, Chat.from_characters("0123456789+-*=;", template=template), tmp_path / "deaf")
    for keys in ({"ask": {"thinking": 0.5}}, {"evaluation": {"thinking": "both"}}):
        with pytest.raises(ModelError, match="the chat template has no enable_thinking switch"):
            pipeline.Pipeline.of(recipe(tmp_path / "deaf", **keys), tmp_path / "run", None)
    with pytest.raises(ModelError, match="no enable_thinking switch"):
        both = config.Evaluation(thinking="both")
        pipeline.evaluate(str(tmp_path / "deaf"), config.Task(name="chain"), config.Ask(), both)
    pipeline.Pipeline.of(recipe(tmp_path / "deaf", ask={"thinking": False}), tmp_path / "run", None)


def printed(thing):
    page = Console(file=io.StringIO(), width=120)
    page.print(thing)
    return [line for line in page.file.getvalue().splitlines() if line.strip()]  # pyright: ignore


def test_summary_table_and_report_show_both(tmp_path):
    model, context = sized(tmp_path, None)
    save(model, context.chat, tmp_path / "model")
    summary = pipeline.run(recipe(tmp_path / "model", ask={"thinking": 0.5}), tmp_path / "run")
    told = json.loads((tmp_path / "run/summary.json").read_text())["stages"][1]["thinking"]
    assert told == summary["stages"][1]["thinking"] and told["on"]["n"] == told["off"]["n"] == 20
    made = {
        "name": "x",
        "kind": "rl",
        "accuracy": 0.75,
        "low": 0.7,
        "high": 0.8,
        "n": 20,
        "length": 31.5,
        "seconds": 1.0,
    }
    other = {**made, "accuracy": 0.25, "low": 0.2, "high": 0.3, "length": 2.5}
    summary["stages"].append({**made, "thinking": {"on": made, "off": other}})
    rows = [line.strip("│ ") for line in printed(terminal.stages_table(summary))][:-1]
    assert [r.split()[:4] for r in rows[-2:]] == [["x", "│", "on", "│"], ["x", "│", "off", "│"]]
    for row, figures in zip(
        rows[-2:], (["75.0", "70.0", "80.0", "31.5"], ["25.0", "20.0", "30.0", "2.5"]), strict=True
    ):
        assert all(figure in row for figure in figures)
    heads = printed(terminal.seeds_table([summary]))[2]
    assert "x on" in heads and "x off" in heads
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    page = report.write(tmp_path / "run").read_text()
    for figure in ("thinking on", "thinking off", "75.0\u00a0%", "25.0\u00a0%", "31.5", "2.5"):
        assert figure in page
    begun = [
        "</think>" in line
        for line in (tmp_path / "run/samples/last-test/000000.jsonl").read_text().splitlines()
    ]
    assert begun.count(True) >= 20


def test_eval_prints_a_column_for_each(capsys):
    figures = {
        "accuracy": 0.75,
        "low": 0.7,
        "high": 0.8,
        "n": 9,
        "truncated": 0.0,
        "unparsed": 0.0,
        "length": 31.5,
    }
    figures |= {
        "length_right": 3.0,
        "length_wrong": 4.0,
        "modes": {},
        "pass_at": {"1": 0.75},
        "sampling": {"n": 1},
    }
    off = {**figures, "accuracy": 0.25}
    print_evaluation(
        {"model": "m", "task": "chain", **figures, "thinking": {"on": figures, "off": off}}
    )
    said = capsys.readouterr().out
    assert (
        "m, thinking on" in said
        and "m, thinking off" in said
        and "75.0 %" in said
        and "25.0 %" in said
    )

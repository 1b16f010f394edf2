"""report.html: what it says, what it keeps of the samples, what it never lets through."""

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from whet import report
from whet.errors import DataError
from whet.format import duration
from whet.report.page import SCRIPTS
from whet.report.read import MOST_POINTS, read
from whet.report.verdict import details, headline, overlapping, split

from .helpers import report_run
from .helpers.report_run import data_of

ASSETS = Path(report.__file__).parent / "assets"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_run.make(tmp_path_factory.mktemp("run") / "mini", steps=12, prompts=4, samples=4)


@pytest.fixture(scope="module")
def html(run: Path) -> str:
    return report.write(run).read_text(encoding="utf-8")


def stage(
    name: str,
    accuracy: float | None,
    low: float | None = None,
    high: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "rl",
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "n": 100,
        **more,
    }


def plain(text: str) -> str:
    return text.replace("\xa0", " ")


def test_headline_says_whether_intervals_overlap():
    stages = [stage("base", 0.5, 0.4, 0.6), stage("rl", 0.58, 0.48, 0.68)]
    sentence = plain(headline({"task": "gym:gcd", "result": "rl", "stages": stages}))
    assert sentence.startswith(
        "Accuracy on gym:gcd rose from 50.0 % [40.0, 60.0] (base) to 58.0 % [48.0, 68.0] (rl); "
    )
    assert "overlap, so these figures alone do not settle" in sentence
    stages[1] |= {"low": 0.61, "high": 0.8}
    assert "do not overlap" in plain(headline({"task": "t", "result": "rl", "stages": stages}))


def test_intervals_that_touch_overlap():
    assert overlapping(stage("a", 0.5, 0.4, 0.6), stage("b", 0.7, 0.6, 0.8))
    assert overlapping(stage("b", 0.7, 0.6, 0.8), stage("a", 0.5, 0.4, 0.6))
    assert overlapping(stage("a", 0.5, 0.4, 0.6), stage("b", 0.7, 0.601, 0.8)) is False
    assert overlapping(stage("a", 0.5), stage("b", 0.7, 0.6, 0.8)) is None


def test_headline_without_a_comparison():
    assert "fell from" in headline(
        {"result": "rl", "stages": [stage("a", 0.5, 0.4, 0.6), stage("rl", 0.2, 0.1, 0.3)]}
    )
    assert "no earlier model was measured" in headline(
        {"result": "rl", "stages": [stage("rl", 0.2, 0.1, 0.3)]}
    )
    assert "no stage of this run has been evaluated" in headline(
        {"result": "rl", "stages": [stage("rl", None)]}
    )
    assert "has been evaluated" in headline({})


def test_gain_decides_what_is_compared():
    stages = [
        stage("start", 0.1, 0, 0.2),
        stage("base", 0.3, 0.2, 0.4),
        stage("rl", 0.9, 0.8, 1.0),
        stage("student", 0.8, 0.7, 0.9),
    ]
    sentence = headline(
        {"result": "rl", "stages": stages, "gain": {"before": "base", "after": "rl", "total": 0.6}}
    )
    assert "(base)" in sentence and "(rl)" in sentence and "student" not in sentence


def test_details_name_unlike_conditions_and_unfinished_runs():
    one = stage("a", 0.5, 0.4, 0.6, sampling={"temperature": 1.0})
    other = stage("b", 0.6, 0.5, 0.7, sampling={"temperature": 0.6})
    assert any(
        "same sampling settings" in d for d in details({"result": "b", "stages": [one, other]})
    )
    assert any("has not finished" in d for d in details({"result": None, "stages": [one]}))
    assert not any(
        "same sampling" in d or "finished" in d
        for d in details({"result": "b", "stages": [one, one | {"name": "b"}]})
    )


def test_split_of_a_loss_keeps_signs():
    assert split(-0.1, 0.05, -0.15).startswith(
        "The loss of 10.0 points is made of +5.0 from choosing"
    )
    assert "−15.0 from" in split(-0.1, 0.05, -0.15)


def test_durations_carry():
    assert duration(59.96) == "60.0 s" and duration(119.7) == "2 min 0 s"


def test_page_holds_verdict_table_gain_warnings_settings(html: str):
    text = plain(html)
    assert "rose from 17.3 % [15.0, 19.6] (base) to 88.4 % [86.4, 90.4] (rl)" in text
    assert "65.5 come from choosing another way of answering and 5.6 from answering better" in text
    assert "difference is +71.1 points [68.2, 74.0], p below 0.0001 (McNemar, exact)." in text
    assert "cut off &lt;b&gt;here&lt;/b&gt;" in html and "<b>here" not in html
    assert "&lt;b&gt;not bold" in html and "temperature 1.0" in html
    assert [
        html.index(f'id="{x}"')
        for x in ("verdict", "stages", "gain", "warnings", "settings", "curves", "samples")
    ] == sorted(
        html.index(f'id="{x}"')
        for x in ("verdict", "stages", "gain", "warnings", "settings", "curves", "samples")
    )


def test_nothing_a_model_wrote_is_markup(html: str):
    body = html[html.index('id="data">') + len('id="data">') :]
    data = body[: body.index("</script>")]
    assert not set("<>&\u2028\u2029") & set(data)
    assert "<img" not in html and "<b>bold" not in html
    assert report_run.ATTACKS[0] in [t[1] for t in data_of(html)["samples"]["tokens"]]


def test_policy_lets_only_the_page_s_own_code_run(html: str):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    rules = policy[1].replace("&#x27;", "'")
    assert rules.startswith("default-src 'none';") and rules.count("'sha256-") == 2
    sources = {
        word
        for rule in rules.split(";")
        for word in rule.split()[1:]
        if not word.startswith("'sha256-")
    }
    assert sources == {"'none'", "data:"}
    for name, pattern in (
        ("script", r"<script>(.*?)</script>"),
        ("style", r"<style>(.*?)</style>"),
    ):
        (text,) = re.findall(pattern, html, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in rules
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    assert not re.findall(r'\sstyle="|\son\w+="', html[: html.index('id="data"')])


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_insert_text_only(name: str):
    source = (ASSETS / name).read_text(encoding="utf-8")
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new "
        r"Function|DOMParser|fetch\(|import\(|</script",
        source,
    )
    assert len(source.splitlines()) <= 300


def test_curves_have_gaps_where_keys_are_absent(run: Path):
    rl = next(c for c in read(run).curves if c.stage == "rl")
    assert (
        rl.values["length_right"][8:11] == [None, None, None]
        and rl.values["length_wrong"][8] is not None
    )
    assert rl.steps == list(range(1, 13)) and set(rl.seconds) == {"sample", "score", "update"}


def test_cut_off_and_broken_lines_are_left_out_and_said(tmp_path: Path):
    line = {
        "stage": "rl",
        "kind": "rl",
        "step": 1,
        "values": {"reward": 0.5, "loss": math.nan, "kl": "x"},
        "seconds": {},
    }
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"step": 2, "values": {"reward": 0.7}})[:30]
    )
    run = read(tmp_path)
    assert run.curves[0].values == {"reward": [0.5]}
    assert any("its last line (2) is cut off" in n for n in run.notices)
    path.write_text('[1]\n{"stage": "rl", "step": true}\n\n' + json.dumps(line) + "\n")
    assert any("3 of 4 lines cannot be read" in n and "line 1" in n for n in read(tmp_path).notices)


def test_of_a_step_written_twice_the_later_counts(tmp_path: Path):
    lines = [
        {"stage": "rl", "kind": "rl", "step": s, "values": {"reward": r}}
        for s, r in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.9))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = read(tmp_path).curves
    assert curve.steps == [1, 2, 3] and curve.values["reward"] == [0.1, 0.9, 0.3]


def test_long_curves_are_thinned(tmp_path: Path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(
            json.dumps({"stage": "s", "kind": "sft", "step": i, "values": {"loss": i}}) + "\n"
            for i in range(1, 4102)
        )
    (curve,) = read(tmp_path).curves
    assert (
        len(curve.steps) <= MOST_POINTS
        and curve.every == 3
        and curve.steps[0] == 1
        and curve.steps[-1] == 4101
    )


def test_bare_runs_make_a_page(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    page = report.write(tmp_path).read_text()
    assert "summary.json is missing" in page and "no stage of this run has been evaluated" in page
    (tmp_path / "summary.json").write_text(
        '{"stages": [{}, 3, {"accuracy": "high", "modes": []}], "gain": [], "warnings": [7], '
        '"versions": null}'
    )
    (tmp_path / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in report.write(tmp_path).read_text()


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_run_is_one_line(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(DataError) as caught:
        report.write(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not list(tmp_path.glob("*.html*")) and not list(tmp_path.glob(".report*"))


def test_no_directory_is_one_line(tmp_path: Path):
    with pytest.raises(DataError, match="no such run directory"):
        report.write(tmp_path / "absent")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        report.write(tmp_path)
    assert not list(tmp_path.glob(".report*"))


def test_strange_text_survives(tmp_path: Path):
    made = report_run.make(tmp_path / "run", steps=1, prompts=1, samples=1)
    (made / "summary.json").write_text(
        json.dumps(report_run.summary() | {"name": "a\ud800\x00<b>"})
    )
    assert "a\ufffd\ufffd&lt;b&gt;" in report.write(made).read_text(encoding="utf-8")

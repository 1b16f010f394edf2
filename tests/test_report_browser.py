"""report.html in a real browser: it draws, it filters, it asks for nothing, and what a model wrote
stays text.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet import report

from .helpers import report_run
from .helpers.webdriver import BROWSER, DRIVER, MISSING, Browser

pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason=MISSING)

DOWN, RIGHT, LEFT, ENTER = "\ue015", "\ue014", "\ue012", "\ue007"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = report_run.make(tmp_path_factory.mktemp("run") / "mini", steps=20, prompts=6, samples=6)
    report.write(made)
    return made


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(window: Browser, run: Path) -> Iterator[Browser]:
    """The report, freshly opened; afterwards: no request, no error, no violation of the policy."""
    window.log("browser")
    window.requests()
    window.open(run / "report.html")
    window.find("#samples .panes")  # unpacked
    yield window
    asked = {address.split("#")[0] for address in window.requests()} - {"about:blank"}
    assert {a for a in asked if not a.startswith("data:")} == {
        (run / "report.html").resolve().as_uri()
    }
    assert window.log("browser") == []


def to_step(page: Browser, at: int) -> None:
    page.run(
        "const s = document.getElementById('step'); s.value = arguments[0]; s.dispatchEvent(new "
        "Event('input'))",
        at,
    )


def test_curves_are_drawn(page: Browser):
    panels = page.run(
        "return [...document.querySelectorAll('[data-stage=rl] [data-panel]')].map(n => n.dataset.panel)"
    )
    wanted = {
        "reward",
        "length",
        "modes",
        "groups_with_signal",
        "entropy",
        "kl",
        "clipped",
        "grad_norm",
        "gap",
        "seconds",
    }
    assert wanted <= set(panels)
    assert page.count("[data-stage=rl] [data-panel=length] path.line") == 2
    assert (
        page.count("[data-panel=modes] path.line") == 3
        and page.count("[data-panel=seconds] path.area") == 3
    )
    assert page.count("[data-panel=loss]") == 4  # rl and three supervised stages
    broken = page.run(
        "const odd = /NaN|undefined|Infinity/;"
        "return [...document.querySelectorAll('svg *')].filter(n => [...n.attributes].some(a => "
        "odd.test(a.value))).length"
    )
    assert broken == 0


def test_a_line_is_lifted_where_a_value_is_absent(page: Browser):
    right = page.run(
        "return document.querySelector('[data-panel=length] path.line.blue').getAttribute('d')"
    )
    wrong = page.run(
        "return document.querySelector('[data-panel=length] path.line.orange').getAttribute('d')"
    )
    assert right.count("M") == 2 and wrong.count("M") == 1


def test_readouts_follow_the_marked_step_in_all_charts(page: Browser, run: Path):
    assert page.text("[data-panel=entropy] .readout").startswith("last, step 20:")
    page.run("document.querySelector('[data-panel=length]').focus()")
    page.type("[data-panel=length]", LEFT + LEFT)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = next(line["values"] for line in lines if line["stage"] == "rl" and line["step"] == 19)
    assert page.text("[data-panel=entropy] .readout").strip() == f"step 19: {values['entropy']:.3g}"
    assert page.text("[data-panel=length] .readout").split() == [
        "step", "19:", "right", f"{values['length_right']:.3g}", "wrong", f"{values['length_wrong']:.3g}",
    ]  # fmt: skip


def test_enter_on_a_curve_opens_the_step_s_samples(page: Browser):
    page.run("document.querySelector('[data-panel=length]').focus()")
    page.type("[data-panel=length]", LEFT + LEFT + LEFT + ENTER)
    assert page.text("#step-says") == "18 of 20"


def test_filter_by_clicking(page: Browser):
    assert page.count("#group-samples .sample") == 6
    to_step(page, 4)
    counts = {b.split()[0]: int(b.split()[-1]) for b in page.texts("#filter button")}
    assert (
        counts["all"] == 36
        and counts["right"] + counts["wrong"] == 36
        and counts["right"]
        and counts["wrong"]
    )
    page.click("#filter [data-value=right]")
    seen = 0
    for row in range(1, page.count("#groups .row") + 1):
        page.click(f"#groups .row:nth-child({row})")
        heads = page.texts("#group-samples .sample-head b:first-of-type")
        assert heads and {h.strip() for h in heads} == {"right"}
        seen += len(heads)
    assert seen == counts["right"] and page.text("#filter [aria-pressed=true]").startswith("right")


def test_filter_by_mode(page: Browser):
    to_step(page, 9)
    page.run(
        "const m = document.getElementById('mode'); m.value = 'careful'; m.dispatchEvent(new Event('change'))"
    )
    facts = page.texts("#group-samples .fact")
    assert {f for f in facts if f.startswith("mode")} == {"mode careful"}


def test_model_output_is_text_and_does_not_run(page: Browser):
    title = page.run("return document.title")
    to_step(page, 0)
    page.click("#groups .row:first-child")
    assert report_run.ATTACKS[0] in page.text("#group-samples .sample:first-child .tokens")
    assert "<img src=x onerror=" in page.text(
        "#detail .prompt .content"
    ) and "</script><b>bold</b>" in page.text("#detail .prompt .content")
    assert "\\u202eevil\\u2028\\u0000" in page.text("#group-samples .sample:first-child .tokens")
    assert page.count("main img, main script, main b b, .tokens > :not(span)") == 0
    for css in ("#tab-across", "#tab-here"):
        page.click(css)
    page.type("#search", "<script>")
    assert page.count("#groups .row") == 1
    assert page.run("return document.title") == title == "r1-zero-mini · whet report"


def test_tokens_are_coloured_and_described(page: Browser):
    to_step(page, 0)
    page.click("#groups .row:first-child")
    tokens = "#group-samples .sample:first-child .t"
    classes = page.run(
        "return [...document.querySelectorAll(arguments[0])].map(n => n.className)", tokens
    )
    assert classes == [
        "t p1",
        "t unchosen",
        "t p2",
        "t p4",
        "t p5",
    ]  # logp −0.5, none, −1.5, −3, −9.9
    page.type("#group-samples .sample:first-child .tokens", RIGHT)
    tip = page.text("#tip")
    assert (
        "−0.50 (p = 0.61)" in tip
        and str(report_run.IDS[report_run.ATTACKS[0]]) in tip
        and "chosen by the policy" in tip
    )
    page.type("#group-samples .sample:first-child .tokens", RIGHT)
    assert "0, not chosen by the policy" in page.text(
        "#tip"
    ) and "log-probability" not in page.text("#tip")
    page.click("#colour [data-value=advantage]")
    classes = page.run(
        "return [...document.querySelectorAll(arguments[0])].map(n => n.className)", tokens
    )
    assert classes[1] == "t unchosen" and classes[0].startswith("t up")
    assert page.run(
        "return document.querySelector('#group-samples .sample:last-child .t').className"
    ).startswith("t down")


def test_the_same_prompt_across_steps(page: Browser):
    page.click("#groups .row:first-child")
    assert page.text("#tab-across") == "same prompt elsewhere (3)"
    page.click("#tab-across")
    assert page.texts("#across h4 button") == [
        "rl, step 5",
        "rl, step 10",
        "rl, step 15",
        "rl, step 20",
    ]
    page.click("#across .place:nth-child(2) h4 button")
    assert (
        page.text("#step-says") == "10 of 20"
        and page.text("#tab-across") == "same prompt elsewhere (3)"
    )


def test_a_test_problem_before_and_after(page: Browser):
    page.run(
        "const m = document.getElementById('stage'); m.value = 'base-test'; m.dispatchEvent(new "
        "Event('change'))"
    )
    page.click("#tab-across")
    assert page.texts("#across h4 button") == [
        "base, test problems",
        "rl, test problems",
        "student, test problems",
    ]
    assert not page.run("return document.getElementById('step').checkVisibility()")


def test_a_prompt_seen_once_offers_its_like(page: Browser):
    page.click("#groups .row:nth-child(2)")
    page.click("#tab-across")
    assert "seen only here" in page.text("#across")
    page.click("#across li button")
    assert page.count("#group-samples .sample") > 0


def test_keys_walk_the_list(page: Browser):
    page.click("#groups .row:first-child")
    page.type("#groups .row:first-child", DOWN)
    assert page.run(
        "return document.activeElement === document.querySelector('#groups .row:nth-child(2)')"
    )
    assert (
        page.text("#detail .content")
        == page.text("#groups .row[aria-current] .ask")
        == page.texts("#groups .ask")[1]
    )


def test_search_tells_where_else(page: Browser):
    wanted = page.texts("#groups .ask")[0]
    page.type("#search", wanted)
    assert page.count("#groups .row") == 1 and "rl 5 rl 10 rl 15" in page.text("#elsewhere")
    page.type("#search", "zzz")
    assert page.count("#groups .row") == 0 and "Found at no other step" in page.text("#elsewhere")


@pytest.mark.parametrize("width", [375, 768, 1400])
def test_nothing_is_wider_than_the_window(page: Browser, run: Path, width: int):
    page.open(run / "report.html", width=width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run(
        "return [...document.querySelectorAll('.chart svg')].every(s => "
        "s.getBoundingClientRect().right <= innerWidth)"
    )


def test_bare_runs_open_without_an_error(window: Browser, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        json.dumps({"stage": "s", "kind": "sft", "step": 1, "values": {"loss": 0.0}}) + "\n{"
    )
    window.log("browser")
    window.open(report.write(tmp_path))
    assert window.text("#samples .empty") == "This run has kept no samples."
    assert window.count("[data-panel=loss] path.line") == 1
    assert "its last line (2) is cut off" in window.text("#warnings")
    assert window.log("browser") == []


def test_samples_that_cannot_be_unpacked_are_named(window: Browser, run: Path, tmp_path: Path):
    text = (run / "report.html").read_text(encoding="utf-8")
    page = tmp_path / "torn.html"
    page.write_text(re.sub(r'"samples":"[^"]+"', '"samples":"H4sI"', text), encoding="utf-8")
    window.log("browser")
    window.open(page)
    assert "cannot unpack the samples" in window.text("#samples .empty")
    assert window.count("[data-panel=reward]") == 1 and window.log("browser") == []


def test_the_watch_for_errors_and_requests_works(window: Browser, tmp_path: Path):
    """What the other tests rely on: a violation of the policy, an error and a request are all seen."""
    page = tmp_path / "bad.html"
    policy = (
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src "
        "'sha256-x'\">"
    )
    page.write_text(
        f"<!doctype html>{policy}<script>alert(1)</script><img src='http://127.0.0.1:9/x.png'>"
    )
    window.log("browser")
    window.open(page)
    assert len(window.log("browser")) >= 2
    page.write_text("<!doctype html><img src='other.png'><script>throw new Error('x')</script>")
    window.requests()
    window.open(page)
    assert any(r.endswith("other.png") for r in window.requests()) and window.log("browser")

"""Composes the page: the summary as static HTML, curves and samples as data, the scripts that draw
them.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from whet.format import count, duration
from whet.report.figures import interval_bar, waterfall
from whet.report.markup import Markup, escape, join, tag
from whet.report.read import Run, listed, mapped, number
from whet.report.verdict import compared, details, headline, interval, percent, split

STYLES = ("page.css", "curves.css", "samples.css", "tokens.css", "narrow.css")
SCRIPTS = (
    "dom.js",
    "scales.js",
    "chart.js",
    "panels.js",
    "samples.js",
    "tokens.js",
    "group.js",
    "browser.js",
)
# Columns of the table of stages, and what the pointer shows on their heads.
COLUMNS = {
    "accuracy": None,
    "95 % interval": None,
    "problems": None,
    "length": "mean tokens of an answer",
    "right / wrong": "mean tokens of right and of wrong answers",
    "cut off": "share of answers that ran into the token limit",
    "seconds": None,
    "parameters": None,
}
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 13 L14 3' stroke='%230b6bb8' stroke-width='3'/%3E%3C/svg%3E"
)


def page(run: Run, samples: str) -> str:
    """The whole document; `samples` is the text that `samples.encode` returns."""
    style = "\n".join(_asset(name) for name in STYLES)
    script = "(() => {\n'use strict';\n" + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();"
    name = str(run.summary.get("name") or run.directory.name)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href=ICON),
        tag("title", f"{name} · whet report"),
        tag("style", Markup(style)),
    )
    curves = [asdict(curve) for curve in run.curves if curve.kind not in ("reject", "rank")]
    body = tag(
        "body",
        tag("main", *_top(run, name), *_drawn()),
        tag(
            "script",
            _json({"curves": curves, "samples": samples}),
            type="application/json",
            id="data",
        ),
        tag("script", Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _json(value: Any) -> Markup:
    """JSON that can stand inside <script>: ASCII only, and no `<`, `>` or `&`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _asset(name: str) -> str:
    return (files("whet.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """The content security policy: nothing loads; only this page's own script and style count."""
    hashes = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        f"img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _top(run: Run, name: str) -> list[Markup | None]:
    """Title, verdict, stages, gain, warnings and settings: the part that needs no script."""
    summary = run.summary
    seconds = number(summary.get("seconds"))
    facts = [
        f"{key} {summary[key]}"
        for key in ("task", "seed", "device")
        if summary.get(key) is not None
    ]
    facts += [duration(seconds)] if seconds is not None else []
    more = details(summary)
    return [
        tag(
            "header",
            tag("h1", name),
            tag("p", " · ".join(facts), class_="facts") if facts else None,
        ),
        tag("p", headline(summary), class_="verdict", id="verdict"),
        tag("p", " ".join(more), class_="details") if more else None,
        _stages(run),
        _gain(run),
        _warnings(run),
        _settings(run),
    ]


def _warnings(run: Run) -> Markup | None:
    warnings = [w for w in listed(run.summary.get("warnings")) if isinstance(w, dict)]
    items = [
        tag(
            "li",
            tag("b", f"{w.get('stage', '')}, step {w.get('step', '–')}: "),
            str(w.get("text", "")),
        )
        for w in warnings
    ]
    items += [tag("li", notice) for notice in run.notices]
    if not items:
        return None
    return _section("Warnings", tag("ul", *items), class_="warnings", id="warnings")


def _stages(run: Run) -> Markup | None:
    if not run.stages:
        return None
    heads = [tag("th", "stage", scope="col")]
    heads += [
        tag("th", name, scope="col", title=title, class_="number")
        for name, title in COLUMNS.items()
    ]
    rows = [
        _stage_row(s, str(run.summary.get("result")), switch)
        for s in run.stages
        for switch in _switches(s)
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_="stages")
    return _section("Stages", table, id="stages")


def _switches(stage: Mapping[str, Any]) -> list[str]:
    """The settings of the thinking switch that a stage was measured with; [""] where it has none."""
    return [str(switch) for switch in mapped(stage.get("thinking"))] or [""]


def _stage_row(stage: Mapping[str, Any], result: str, switch: str) -> Markup:
    figures = mapped(mapped(stage.get("thinking")).get(switch)) or stage
    measure = mapped(stage.get("pairs")) or figures  # of a reward model: on pairs of responses
    accuracy = number(measure.get("accuracy"))
    right, wrong = number(figures.get("length_right")), number(figures.get("length_wrong"))
    lengths = "–" if right is None and wrong is None else f"{_tokens(right)} / {_tokens(wrong)}"
    ends = tag("span", interval(measure) or "–")
    bar = interval_bar(accuracy, number(measure.get("low")), number(measure.get("high")))
    name = str(stage.get("name", ""))
    cells = [
        tag("b", percent(accuracy)) if accuracy is not None else escape("–"),
        join([ends, bar]) if bar else ends,
        escape(count(number(measure.get("n"))) + " pairs" * ("pairs" in stage)),
        _tokens(number(figures.get("length"))),
        lengths,
        percent(number(figures.get("truncated"))),
        _seconds(number(stage.get("seconds"))),
        count(number(stage.get("parameters"))),
    ]
    kind = None if stage.get("kind") == stage.get("name") else str(stage.get("kind", ""))
    note = f"thinking {switch}" if switch else kind
    first = tag(
        "th",
        tag("span", name),
        " ",
        None if note is None else tag("span", note, class_="kind"),
        " ",
        tag("span", "result", class_="mark") if name == result else None,
        scope="row",
    )
    rest = [
        tag("td", cell, class_="number", data_label=label)
        for label, cell in zip(COLUMNS, cells, strict=True)
    ]
    return tag(
        "tr",
        first,
        *rest,
        class_="result" if name == result else ("measured" if accuracy is not None else "quiet"),
    )


def _tokens(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _gain(run: Run) -> Markup | None:
    """The parts of the gain, and each mode's share and accuracy."""
    gain = mapped(run.summary.get("gain"))
    before, after = compared(run.summary)
    choosing, reasoning = number(gain.get("choosing")), number(gain.get("reasoning"))
    if before is None or after is None:
        return None
    table = _modes(before, after)
    if table is None and choosing is None:
        return None
    parts = None
    start, total = number(before.get("accuracy")), number(gain.get("total"))
    if choosing is not None and reasoning is not None and start is not None and total is not None:
        names = str(before.get("name")), str(after.get("name"))
        text = tag("p", split(total, choosing, reasoning), id="gain-text")
        parts = join([text, waterfall(names, start, choosing, reasoning)])
    columns = tag("div", parts, table, class_="split")
    return _section("What the gain is made of", columns, id="gain")


def _modes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Markup | None:
    one, other = mapped(before.get("modes")), mapped(after.get("modes"))
    names = list(dict.fromkeys([*one, *other]))
    if not names:
        return None
    pair = (str(before.get("name")), str(after.get("name")))
    pairs = [
        tag("th", text, colspan="2", scope="colgroup", class_="number")
        for text in ("share of answers", "accuracy of these")
    ]
    top = tag("tr", tag("td"), *pairs, class_="top")
    second = tag(
        "tr",
        tag("th", "way of answering", scope="col"),
        *[tag("th", n, scope="col", class_="number") for n in pair * 2],
    )
    rows = []
    for name in names:
        sides = (mapped(one.get(name)), mapped(other.get(name)))
        shares = [tag("td", percent(number(s.get("share"))), class_="number") for s in sides]
        right = [
            tag("td", percent(number(s.get("accuracy"))), _of(s), class_="number") for s in sides
        ]
        rows.append(tag("tr", tag("th", name, scope="row"), *shares, *right))
    return tag("table", tag("thead", top, second), tag("tbody", *rows), class_="modes")


def _of(side: Mapping[str, Any]) -> Markup | None:
    n = number(side.get("n"))
    return None if n is None else tag("small", f" of {count(n)}")


def _drawn() -> list[Markup]:
    """The sections that the scripts fill."""
    plain = "A script of this page draws this part; it needs nothing from the network."
    return [
        _section("Curves", tag("noscript", plain), id="curves"),
        _section("Samples", tag("noscript", plain), id="samples"),
    ]


def _settings(run: Run) -> Markup | None:
    versions = mapped(run.summary.get("versions"))
    rows: list[tuple[str, str]] = [(str(k), str(v)) for k, v in versions.items()]
    rows += [
        (key, str(run.summary[key]))
        for key in ("device", "seed")
        if run.summary.get(key) is not None
    ]
    for stage in run.stages:
        if sampling := mapped(stage.get("sampling")):
            settings = ", ".join(f"{k} {v}" for k, v in sampling.items())
            rows.append((f"{stage.get('name')} measured with", settings))
        if passes := _passes(stage):
            rows.append((f"{stage.get('name')} pass@k", passes))
    items = [part for key, value in rows for part in (tag("dt", key), tag("dd", value))]
    folds: list[Markup] = []
    if items:
        folds.append(_fold("Versions and sampling", tag("dl", *items)))
    if run.recipe:
        folds.append(_fold("Recipe, resolved", tag("pre", run.recipe)))
    return _section("Settings", *folds, id="settings") if folds else None


def _section(title: str, *children: Markup | None, **attributes: str) -> Markup:
    return tag("section", tag("h2", title), *children, **attributes)


def _fold(title: str, inside: Markup) -> Markup:
    return tag("details", tag("summary", title), inside)


def _passes(stage: Mapping[str, Any]) -> str:
    shares = {k: number(v) for k, v in mapped(stage.get("pass_at")).items()}
    return ", ".join(f"{k}: {percent(v)}" for k, v in shares.items()) if len(shares) > 1 else ""

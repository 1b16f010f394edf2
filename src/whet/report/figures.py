"""Two small pictures beside the summary's numbers, as static SVG: an interval, and a gain's parts."""

from whet.format import points
from whet.report.markup import Markup, tag
from whet.report.verdict import percent


def interval_bar(accuracy: float | None, low: float | None, high: float | None) -> Markup | None:
    """The 95 % interval on a scale from 0 to 100 %."""
    if accuracy is None or low is None or high is None:
        return None
    return tag(
        "svg",
        tag("line", x1="0", x2="100", y1="5", y2="5", class_="rail"),
        tag(
            "rect",
            x=_per(low),
            width=_per(max(high - low, 0.002)),
            y="2.5",
            height="5",
            class_="whisker",
        ),
        tag("rect", x=_per(accuracy - 0.006), width="1.2", y="0", height="10", class_="dot"),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        class_="interval",
        aria_hidden="true",
    )


def waterfall(names: tuple[str, str], start: float, choosing: float, reasoning: float) -> Markup:
    """Four rows: the accuracy before, the parts that choosing and reasoning add, the one after."""
    middle, end = start + choosing, start + choosing + reasoning
    rows = [
        (names[0], percent(start), 0.0, start, "before"),
        ("choosing", points(choosing), start, middle, "choosing"),
        ("reasoning better", points(reasoning), middle, end, "reasoning"),
        (names[1], percent(end), 0.0, end, "after"),
    ]
    parts = [part for row in rows for part in _row(*row)]
    return tag("div", *parts, class_="waterfall")


def _row(
    label: str, value: str, begin: float, end: float, kind: str
) -> tuple[Markup, Markup, Markup]:
    left, width = min(begin, end), max(abs(end - begin), 0.003)
    bar = tag(
        "svg",
        tag("rect", x="0", y="0", width="100", height="10", class_="ground"),
        tag("rect", x=_per(left), width=_per(width), y="0", height="10", class_=kind),
        viewBox="0 0 100 10",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    return tag("span", label), bar, tag("span", value, class_="number")


def _per(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}"

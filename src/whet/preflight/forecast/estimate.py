"""What is foretold: seconds at least, likely and at most, and how they are said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whet.format import rough_duration

CLOSE = 1.5  # most over least, below which their middle is within a fifth of either


class Span(NamedTuple):
    least: float
    likely: float
    most: float

    @classmethod
    def of(cls, value: float) -> "Span":
        return cls(value, value, value)


@dataclass(frozen=True)
class Estimate:
    """One stage: how many steps, the seconds of each, and of what is done once (data, models on
    disk, its measurement).

    Where a gate ends the stage, nobody can say when: `likely` is then the middle of what may be.
    """

    name: str
    steps: Span
    step: Span
    work: Span  # once, as part of the stage
    measured: Span  # once, after it
    gated: bool = False

    @property
    def stage(self) -> Span:
        """Seconds without its measurement, as summary.json has them."""
        return Span(*(n * s + o for n, s, o in zip(self.steps, self.step, self.work, strict=True)))

    @property
    def seconds(self) -> Span:
        return total([self.stage, self.measured])

    def told(self) -> str:
        gate = (
            f" (its gate may hold after {self.steps.least:g} to {self.steps.most:g} steps)"
            if self.gated
            else ""
        )
        return f"{self.name} {said(self.seconds)}{gate}"


def spanned(took: Sequence[float]) -> Span:
    """What one case took, or the least, the likely and the most of several, which noise may have
    put in another order.

    >>> spanned([2.0]), spanned([2.0, 1.9, 3.0])
    (Span(least=2.0, likely=2.0, most=2.0), Span(least=1.9, likely=1.9, most=3.0))
    """
    return Span(min(took), took[len(took) // 2], max(took))


def total(spans: Sequence[Span]) -> Span:
    return Span(*(sum(values) for values in zip(*spans, strict=True))) if spans else Span.of(0.0)


def said(span: Span) -> str:
    """One number where that is near enough to all it may be.

    >>> said(Span(40, 44, 50)), said(Span(30, 44.2, 80)), said(Span(0.2, 0.22, 0.25)), said(Span(5000, 6000, 7000))
    ('44 s', '44 s (30 to 80 s)', '0.2 s', '100 min')
    """
    if span.most <= CLOSE * span.least or span.most < 1:
        return rough_duration(span.likely)
    return f"{rough_duration(span.likely)} ({rough_duration(span.least)} to {rough_duration(span.most)})".replace(
        " s to ", " to "
    )

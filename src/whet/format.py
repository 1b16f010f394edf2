"""Numbers as people read them: in the terminal, in a run's report and in what `whet check` says."""

UNKNOWN = "–"


def number(value: float | None, form: str = "{:.1f}") -> str:
    """
    >>> number(8.25), number(0.25, "{:.2f}"), number(None)
    ('8.2', '0.25', '–')
    """
    return UNKNOWN if value is None else form.format(value)


def count(value: float | None) -> str:
    """
    >>> count(12345), count(None)
    ('12,345', '–')
    """
    return number(value, "{:,.0f}")


def percent(share: float | None, space: str = " ") -> str:
    """A share in per cent; `space` stands before the sign.

    >>> percent(0.8714), percent(None)
    ('87.1 %', '–')
    """
    return UNKNOWN if share is None else f"{100 * share:.1f}{space}%"


def signed(difference: float) -> str:
    """A difference of shares in per cent, with its sign.

    >>> signed(0.4), signed(-0.012)
    ('+40.0', '−1.2')
    """
    return f"{100 * difference:+.1f}".replace("-", "−")


def points(difference: float) -> str:
    """
    >>> points(-0.012)
    '−1.2 points'
    """
    return f"{signed(difference)} points"


def duration(seconds: float) -> str:
    """A time that was measured.

    >>> duration(8.25), duration(245), duration(7300)
    ('8.2 s', '4 min 5 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def rough_duration(seconds: float) -> str:
    """A time that is estimated: one unit, two figures or so.

    >>> rough_duration(0.22), rough_duration(44.2), rough_duration(6000), rough_duration(40_000)
    ('0.2 s', '44 s', '100 min', '11 h')
    """
    if seconds >= 600:
        return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.0f} h"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def gibibytes(size: float) -> str:
    """
    >>> gibibytes(3 * 2**29)
    '1.50 GiB'
    """
    return f"{size / 2**30:.2f} GiB"

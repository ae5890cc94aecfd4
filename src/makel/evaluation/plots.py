"""Plots as SVG text: no scripts, no fonts, no outside reference. Colours are the page's CSS classes, so that they
follow its light and dark scheme; shapes and dashes tell apart what colours do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import ArrayLike, NDArray

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 26, 44
_BINS = 40
_LONG_TAIL = 12.0
"""Scores that span more than this factor are drawn on a logarithmic axis."""

_FILE_STYLE = (
    "svg{font-family:system-ui,sans-serif;background:#fff}text{font-size:12px;fill:#5b646c}"
    ".strong{fill:#1d2226;font-weight:600}.axis{stroke:#5b646c;fill:none}.grid{stroke:#e4e1da;fill:none}"
    ".mark{fill:#1d2226}.line-a,.line-b,.line-c{fill:none;stroke-width:2.2}.line-a{stroke:#0f6aa8}"
    ".line-b{stroke:#b3441e;stroke-dasharray:7 4}.line-c{stroke:#5f7a1f;stroke-dasharray:2 3}"
)


@dataclass(frozen=True)
class _Axis:
    """From values to pixels along one axis."""

    low: float
    high: float
    start_px: float
    end_px: float
    logarithmic: bool = False

    def px(self, value: ArrayLike) -> NDArray[np.float64]:
        values = np.asarray(value, np.float64)
        low, high = self.low, self.high
        if self.logarithmic:
            values, low, high = np.log10(values), log10(low), log10(high)
        return self.start_px + (values - low) / (high - low) * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[float]:
        if self.logarithmic:
            steps = (1, 2, 5) if log10(self.high / self.low) < 2.5 else (1,)
            first, last = floor(log10(self.low)), ceil(log10(self.high))
            powers = range(first, last + 1, max(1, (last - first) // 6))
            found = [step * 10.0**power for power in powers for step in steps]
            return [value for value in found if self.low <= value <= self.high]
        raw = (self.high - self.low) / count
        step = 10.0 ** floor(log10(raw))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if factor * step >= raw * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def score_histogram(
    upper: Sequence[float], lower: Sequence[float], threshold: float, *, upper_name: str, lower_name: str
) -> Markup:
    """Two histograms back to back on one axis of scores, with the threshold and its reject side.

    Args:
        upper: Scores drawn upwards.
        lower: Scores drawn downwards; may be empty, then only the upper half is drawn.
        threshold: Rejects are above it.
        upper_name: What the upper ones are.
        lower_name: What the lower ones are.
    """
    everything = np.array([*upper, *lower, threshold], np.float64)
    axis = _score_axis(everything)
    line_px = float(axis.px(threshold))
    edges = _bin_edges(axis, threshold, line_px)
    up, down = _counts(upper, edges), _counts(lower, edges)
    bottom_px = _HEIGHT - _BOTTOM
    # Each side has a scale of its own: a few defects among thousands of good images have to stay visible.
    middle_px = bottom_px if not len(lower) else _TOP + (bottom_px - _TOP) * 0.5
    parts = [
        f'<rect class="reject-side" x="{line_px:.1f}" y="{_TOP}" width="{max(0.0, _WIDTH - _RIGHT - line_px):.1f}" '
        f'height="{bottom_px - _TOP}"/>'
    ]
    sides = (
        (up, "good", upper_name, _TOP + 14 - middle_px),
        (down, "defect", lower_name, bottom_px - 14 - middle_px),
    )
    for counts, css, name, reach_px in sides:
        for index in np.flatnonzero(counts):
            left_px, right_px = axis.px(edges[index : index + 2])
            width_px = max(1.0, right_px - left_px - 1)
            height_px = reach_px * counts[index] / counts.max()
            tip = escape(f"{counts[index]} {name}: {edges[index]:.3g} to {edges[index + 1]:.3g}")
            parts.append(
                f'<rect class="{css}" x="{left_px + 0.5:.1f}" y="{middle_px + min(0.0, height_px):.1f}" '
                f'width="{width_px:.1f}" height="{abs(height_px):.1f}"><title>{tip}</title></rect>'
            )
    parts.append(f'<path class="axis" d="M{_LEFT} {middle_px:.1f}H{_WIDTH - _RIGHT}"/>')
    parts += _x_axis(axis, "image score (logarithmic)" if axis.logarithmic else "image score")
    side = -1 if line_px > _WIDTH * 0.6 else 1
    parts += [
        f'<path class="threshold" d="M{line_px:.1f} {_TOP - 8}V{bottom_px}"/>',
        _text(line_px + 6 * side, _TOP - 8, f"threshold {threshold:.4g}", "strong", "end" if side < 0 else "start"),
        _side_label(upper_name, len(upper), (_TOP + middle_px) / 2),
    ]
    if len(lower):
        parts.append(_side_label(lower_name, len(lower), (middle_px + bottom_px) / 2))
    label = (
        f"Histogram of image scores: {len(upper)} {upper_name}, {len(lower)} {lower_name}; threshold {threshold:.4g}"
    )
    return _svg(parts, label)


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: What it is, for the legend.
        points: (K, 2) x and y.
        css: "line-a", "line-b" or "line-c"; each has a dash of its own.
    """

    name: str
    points: NDArray[np.float64]
    css: str = "line-a"


def curve_plot(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    x_high: float = 1.0,
    chance: bool = False,
    mark: tuple[float, float, str] | None = None,
) -> Markup:
    """Rising curves in a unit square, or in the part of it up to `x_high`.

    Args:
        lines: Drawn in this order; those without points are left out.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        x_high: Right end.
        chance: Draw the diagonal that guessing gives.
        mark: x, y and name of one point of interest.
    """
    x, y = _Axis(0, x_high, _LEFT, _WIDTH - _RIGHT), _Axis(0, 1, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_x_axis(x, x_label), *_y_axis(y, y_label)]
    if chance:
        parts.append(f'<path class="chance" d="M{x.px(0):.1f} {y.px(0):.1f}L{x.px(1):.1f} {y.px(1):.1f}"/>')
    drawn = [line for line in lines if len(line.points)]
    parts += [f'<path class="{line.css}" d="{_path(x, y, line.points)}"/>' for line in drawn]
    if mark is not None:
        at_x, at_y = float(x.px(mark[0])), float(y.px(mark[1]))
        side = -1 if at_x > _WIDTH * 0.6 else 1
        parts += [
            f'<circle class="mark" cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"><title>{escape(mark[2])}</title></circle>',
            _text(at_x + 10 * side, at_y + 18, mark[2], "strong", "end" if side < 0 else "start"),
        ]
    return _svg([*parts, *_legend(drawn)], f"{y_label} over {x_label}: " + ", ".join(line.name for line in drawn))


def trend_plot(
    lines: Sequence[Line], *, x_label: str, y_label: str, y_low: float = 0.0, logarithmic: bool = False
) -> Markup:
    """How something goes with something else: a few measured points, joined.

    Args:
        lines: Each with at least one point, x ascending and positive; drawn in this order.
        x_label: What the horizontal axis is.
        y_label: What the vertical axis is.
        y_low: Lower end of the vertical axis; at or below every point.
        logarithmic: Whether the horizontal axis is, marked at the measured values; else it begins at 0.
    """
    every = np.concatenate([line.points for line in lines])
    measured = sorted({float(value) for value in every[:, 0]})
    low, high = (measured[0] / 1.1, measured[-1] * 1.1) if logarithmic else (0.0, measured[-1] * 1.02)
    x = _Axis(low, high, _LEFT, _WIDTH - _RIGHT, logarithmic)
    top = max(float(every[:, 1].max()), y_low + 1e-9)
    y = _Axis(y_low, top + 0.03 * (top - y_low), _HEIGHT - _BOTTOM, _TOP)
    parts = [*_x_axis(x, x_label, measured if logarithmic else None), *_y_axis(y, y_label)]
    for line in lines:
        parts.append(f'<path class="{line.css}" d="{_path(x, y, line.points)}"/>')
        parts += [
            f'<circle class="mark" cx="{x.px(at):.1f}" cy="{y.px(value):.1f}" r="3">'
            f"<title>{escape(line.name)}: {value:.4g} at {at:g}</title></circle>"
            for at, value in line.points
        ]
    return _svg([*parts, *_legend(lines)], f"{y_label} over {x_label}: " + ", ".join(line.name for line in lines))


def to_file(svg: Markup) -> str:
    """A plot as a file of its own, with colours that a page would have given it."""
    opening, rest = str(svg).split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{_FILE_STYLE}</style>{rest}\n'


def loss_plot(losses: Sequence[float]) -> Markup:
    """The loss after each pass over the images, (epochs,) finite; logarithmic when all are positive."""
    values = np.asarray(losses, np.float64)
    logarithmic = bool(values.min() > 0 and values.max() > 3 * values.min())
    low, high = float(values.min()), float(values.max())
    if not logarithmic:
        low, high = min(0.0, low), high or 1.0
    elif log10(high / low) < 1:  # room for at least two marks
        low, high = 10 ** (floor(log10(low) * 3) / 3), 10 ** (ceil(log10(high) * 3) / 3)
    x = _Axis(1, max(2, values.size), _LEFT, _WIDTH - _RIGHT)
    top = low + 1 if high == low else high * 1.02 if logarithmic else high + 0.02 * (high - low)
    y = _Axis(low, top, _HEIGHT - _BOTTOM, _TOP, logarithmic)
    points = np.stack([np.arange(1, values.size + 1), values], axis=1)
    whole = [tick for tick in x.ticks() if tick == round(tick)]
    parts = [
        *_x_axis(x, "pass over the images", whole),
        *_y_axis(y, "loss (logarithmic)" if logarithmic else "loss"),
        f'<path class="line-a" d="{_path(x, y, points)}"/>',
        f'<circle class="mark" cx="{x.px(values.size):.1f}" cy="{y.px(values[-1]):.1f}" r="4">'
        f"<title>{values[-1]:.4g} at the end</title></circle>",
    ]
    return _svg(parts, f"Loss over {values.size} passes, from {values[0]:.4g} to {values[-1]:.4g}")


def bar_list(values: Mapping[str, float], *, unit: str) -> Markup:
    """Named values as horizontal bars, in the order given."""
    row_px, name_px = 26, 130
    height_px = row_px * len(values) + 4
    highest = max([*values.values(), 1e-9])
    parts = []
    for index, (name, value) in enumerate(values.items()):
        top_px = index * row_px + 5
        width_px = (_WIDTH - name_px - 90) * value / highest
        parts += [
            _text(name_px - 10, top_px + 13, name, anchor="end"),
            f'<rect class="bar" x="{name_px}" y="{top_px}" width="{max(1.0, width_px):.1f}" height="17" rx="2"/>',
            _text(name_px + max(1.0, width_px) + 8, top_px + 13, f"{value:.1f} {unit}", "strong"),
        ]
    return _svg(parts, "; ".join(f"{name} {value:.1f} {unit}" for name, value in values.items()), height_px)


def interval_bar(value: float | None, interval: tuple[float, float] | None) -> Markup:
    """A rate in [0, 1] as a dot on its interval, small enough for a table."""
    if value is None or interval is None:
        return Markup("")
    low, high = interval
    left_px, middle_px, right_px = (6 + 88 * rate for rate in (low, value, high))  # room for the dot at 0 and at 1
    inner = (
        f'<path class="axis" d="M6 8H94"/><path class="whisker" d="M{left_px:.1f} 8H{right_px:.1f}"/>'
        f'<circle class="mark" cx="{middle_px:.1f}" cy="8" r="4"/>'
    )
    label = f"{100 * value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %"
    return Markup(f'<svg class="spark" viewBox="0 0 100 16" role="img" aria-label="{label}">{inner}</svg>')


def _score_axis(values: NDArray[np.float64]) -> _Axis:
    low, high = float(values.min()), float(values.max())
    if not (isfinite(low) and isfinite(high)):
        raise ValueError("scores to draw must be finite")
    if low > 0 and high > _LONG_TAIL * low:
        return _Axis(low / 1.15, high * 1.15, _LEFT, _WIDTH - _RIGHT, logarithmic=True)
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return _Axis(low - margin, high + margin, _LEFT, _WIDTH - _RIGHT)


def _bin_edges(axis: _Axis, threshold: float, line_px: float) -> NDArray[np.float64]:
    """(_BINS + 1,) about evenly spaced; the threshold is one of them, so that every bar is on one side of it."""
    share = (line_px - axis.start_px) / (axis.end_px - axis.start_px)
    n_below = min(max(round(_BINS * share), 1), _BINS - 1)
    spaced = np.geomspace if axis.logarithmic else np.linspace
    below, above = spaced(axis.low, threshold, n_below + 1), spaced(threshold, axis.high, _BINS - n_below + 1)
    return np.concatenate([below, above[1:]])


def _counts(scores: Sequence[float], edges: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many scores lie in each bin; one on an edge is in the bin left of it, as one at the threshold passes."""
    return np.histogram(-np.asarray(scores, np.float64), -edges[::-1])[0][::-1]


def _x_axis(axis: _Axis, label: str, ticks: Sequence[float] | None = None) -> list[str]:
    y = _HEIGHT - _BOTTOM
    ticks = axis.ticks() if ticks is None else ticks
    parts = [f'<path class="axis" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>']
    for tick, name in zip(ticks, _tick_names(ticks), strict=True):
        x = float(axis.px(tick))
        parts += [f'<path class="axis" d="M{x:.1f} {y}v4"/>', _text(x, y + 17, name, anchor="middle")]
    return [*parts, _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, label, "label", "middle")]


def _y_axis(axis: _Axis, label: str) -> list[str]:
    parts = []
    ticks = axis.ticks()
    for tick, name in zip(ticks, _tick_names(ticks), strict=True):
        y = float(axis.px(tick))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 7, y + 4, name, anchor="end"))
    return [*parts, _text(4, _TOP - 12, label, "label")]


def _tick_names(ticks: Sequence[float]) -> list[str]:
    """With as many digits as tell them apart, four at least."""
    names: list[str] = []
    for digits in range(4, 18):
        names = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(names)) == len(ticks):
            break
    return names


def _legend(lines: Sequence[Line]) -> list[str]:
    """Name and dash of each line, in the lower right corner."""
    parts = []
    for index, line in enumerate(lines):
        top_px = _HEIGHT - _BOTTOM - 18 * (len(lines) - index) + 4
        parts += [
            f'<path class="{line.css}" d="M{_WIDTH - _RIGHT - 30} {top_px - 4}h24"/>',
            _text(_WIDTH - _RIGHT - 36, top_px, line.name, anchor="end"),
        ]
    return parts


def _side_label(name: str, count: int, y: float) -> str:
    return _text(4, y - 3, name, "label") + _text(4, y + 12, str(count), "label")


def _text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _path(x: _Axis, y: _Axis, points: NDArray[np.float64]) -> str:
    pairs = (f"{px:.1f} {py:.1f}" for px, py in zip(x.px(points[:, 0]), y.px(points[:, 1]), strict=True))
    return "M" + "L".join(pairs)


def _svg(parts: Sequence[str], label: str, height: int = _HEIGHT) -> Markup:
    # Every text has been escaped where it went in.
    box = f'class="plot" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}"'
    return Markup(f"<svg {box}>{''.join(parts)}</svg>")

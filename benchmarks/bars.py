"""What was aimed at, and whether the committed results reach it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

from results_tables import (
    average,
    done,
    grouped,
    ours_beside,
    ratio,
    read,
    read_peers,
    sizes_of_peers,
    table,
    there,
    times,
)


@dataclass(frozen=True)
class Bar:
    """Something that was aimed at.

    Attributes:
        what: In words.
        aim: The aim in words.
        measured: What came out, in words.
        met: Whether it did.
    """

    what: str
    aim: str
    measured: str
    met: bool


ACCURACY = {
    "toothbrush": {"image_auroc": 0.998, "pixel_auroc": 0.992},
    "magnetic_tile": {"image_auroc": 0.98, "pixel_auroc": 0.844},
    "pill": {"image_auroc": 0.965, "pixel_auroc": 0.98},
    "screw": {"image_auroc": 0.975, "pixel_auroc": 0.994},
    "metal_nut": {"image_auroc": 0.995},
    "aliens": {"image_auroc": 0.995},
    "cookies": {"image_auroc": 0.995, "pixel_auroc": 0.97},
}
BEHIND, AHEAD = 0.01, 0.01
"""How far a set may be behind its best peer, and how far the mean of all has to be ahead of the best peer's."""

WORDS = {
    "found_5": "defects found at a 5 % promise",
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro_30": "AUPRO",
}


def at_least(what: str, value: float, aim: float, form: str = ".3f") -> Bar:
    return Bar(what, f"at least {aim:g}", f"{value:{form}}", value >= aim)


def at_most(what: str, value: float, aim: float, unit: str, form: str = ".1f") -> Bar:
    return Bar(what, f"at most {aim:g} {unit}", f"{value:{form}} {unit}", value <= aim)


def first_model_bars() -> Iterator[Bar]:
    rows = read("first_model.csv")
    groups = {category: of for (category,), of in grouped(rows, "category").items()}
    slowest = {
        key: max(median(float(row[f"latency_own_{key}_ms"]) for row in of) for of in groups.values())
        for key in ("p50", "p99")
    }
    if "toothbrush" in groups:
        fit_s = median(float(row["fit_s"]) for row in groups["toothbrush"])
        yield at_most("toothbrush, the whole fit command", fit_s, 60, "s")
    yield at_most("decoded image to verdict, p50", slowest["p50"], 25, "ms")
    yield at_most("decoded image to verdict, p99", slowest["p99"], 40, "ms")
    cold_s = median(float(row["cold_inspect_s"]) for row in rows)
    yield at_most("cold start to the first verdict", cold_s, 1, "s", ".2f")
    yield at_most("model folder", max(float(row["model_mb"]) for row in rows), 25, "MB")


def accuracy_bars(rows: list[dict[str, str]]) -> Iterator[Bar]:
    """The default on each set."""
    groups = grouped([row for row in rows if row["who"] == "makel"], "category")
    for category, aims in ACCURACY.items():
        for metric, aim in aims.items():
            value = average(groups.get((category,), []), metric)
            if value is not None:
                yield at_least(f"{category}, {WORDS[metric]}", value, aim)


def peers_bars() -> Iterator[Bar]:
    rows = done(read_peers("peers.csv"))
    yield from accuracy_bars(rows)
    sizes = sizes_of_peers(rows)
    for size in sizes:
        yield from peers_bars_at(rows, size, f" at {size}" if len(sizes) > 1 else "")


def peers_bars_at(rows: list[dict[str, str]], size: str, where: str) -> Iterator[Bar]:
    """Ours beside the peers of one size, and on the mean of the sets that all of them have."""
    groups = grouped([row for row in rows if row["size"] == size and row["who"] != "makel"], "who", "category")
    models = list(dict.fromkeys(who for who, _ in groups))
    ours = {category: ours_beside(rows, category, size) for category in dict.fromkeys(row["category"] for row in rows)}
    sets = [category for category, of in ours.items() if of and any((who, category) in groups for who in models)]
    for metric, what in WORDS.items():
        mine = {category: average(ours[category], metric) for category in sets}
        measured = [category for category in sets if mine[category] is not None]
        theirs = {
            who: {category: average(groups.get((who, category), []), metric) for category in measured} for who in models
        }
        whole = {who: mean(of.values()) for who, of in theirs.items() if of and None not in of.values()}
        if len(measured) > 1:
            words = f"mean of {len(measured)} sets, {what}{where}"
            yield from best_of(words, mean(mine[each] for each in measured), whole, AHEAD)
        if metric == "found_5":
            continue
        for category in measured:
            known = {who: value for who, of in theirs.items() if (value := of[category]) is not None}
            yield from best_of(f"{category}, {what}{where}", mine[category], known, -BEHIND)
    for category in sets:
        value = ratio(groups.get(("anomalib patchcore", category), []), ours[category], "ms_p50")
        if value is not None:
            what = f"{category}, an image against PatchCore{where}"
            yield Bar(what, "at least 3x as fast", times(value), value >= 3)


def best_of(what: str, mine: float, peers: dict[str, float], ahead: float) -> Iterator[Bar]:
    """At least so far ahead of the best peer, to the three digits that are shown, or behind it where that is negative."""
    if peers:
        best = max(peers, key=peers.__getitem__)
        is_met = round(mine, 3) >= round(peers[best] + ahead, 3)
        aim = f"at least {peers[best]:.3f} {'+' if ahead > 0 else '-'} {abs(ahead):g} ({best})"
        yield Bar(f"{what} against the best peer", aim, f"{mine:.3f}", is_met)


def fit_scaling_bars() -> Iterator[Bar]:
    rows = read("fit_scaling.csv")
    groups = {int(count): of for (count,), of in grouped(rows, "n_images").items()}
    fit_s = {count: median(float(row["fit_s"]) for row in of) for count, of in sorted(groups.items())}
    if 320 in groups:
        yield at_most("fit on 320 images of 1024x1024", fit_s[320], 150, "s")
    if 4000 in groups:
        peak_mb = max(float(row["peak_mb"]) for row in groups[4000])
        yield at_most("peak memory of a fit on 4,000 images of 1024x1024", peak_mb, 2000, "MB", ".0f")
    if len(fit_s) > 2:
        slopes = [(s1 - s0) / (n1 - n0) for (n0, s0), (n1, s1) in pairwise(fit_s.items())][-2:]
        growth = slopes[1] / slopes[0]
        words = f"{1000 * slopes[0]:.0f} ms, then {1000 * slopes[1]:.0f} ms"
        yield Bar("fit, seconds each further image costs", "the same, within a fifth", words, growth <= 1.2)


def metrics_speed_bars() -> Iterator[Bar]:
    row = max(read("metrics_speed.csv"), key=lambda row: int(row["pixels"]))
    # Both run on one thread, one after the other: wall seconds would compare what else ran beside each.
    value = float(row["sklearn_cpu_s"]) / float(row["cpu_s"])
    what = f"pixel metrics of {int(row['pixels']) / 1e6:.0f} million pixels against scikit-learn's AUROC"
    yield Bar(what, "at least 100x as fast", times(value), value >= 100)
    yield Bar(f"{what}, error", "at most 1e-9", f"{float(row['error']):.0e}", float(row["error"]) <= 1e-9)


def bars() -> str:
    """Every aim whose results file is there, met or missed."""
    sources = {
        "first_model.csv": first_model_bars,
        "peers.csv": peers_bars,
        "fit_scaling.csv": fit_scaling_bars,
        "metrics_speed.csv": metrics_speed_bars,
    }
    found = [bar for name, of in sources.items() if there(name) for bar in of()]
    body = [(bar.what, bar.aim, bar.measured, "met" if bar.met else "**missed**") for bar in found]
    return table(("", "aim", "measured", ""), body)

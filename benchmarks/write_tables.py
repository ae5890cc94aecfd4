#!/usr/bin/env python3
"""Put the committed results into README.md and docs: `python benchmarks/write_tables.py`. A test holds them equal.

Blocks between `<!-- results: NAME -->` and `<!-- end of results -->` are replaced; nothing else is touched. A block
whose results file is not there is left empty. Plots stand in docs/benchmarks/figures.

With `--bench DIR` the results of `makel bench benchmarks/specs/here.toml --out DIR` are taken over first: its rows, its
tables, and its figures but those that show images, whose licences forbid it.
"""

import argparse
import json
import re
import shutil
from math import floor
from pathlib import Path
from statistics import mean, median

import leave_one_out
import numpy as np
from bars import bars
from results_tables import (
    RESULTS,
    average,
    came_from,
    done,
    elsewhere,
    grouped,
    middle,
    ours_beside,
    percent,
    ratio,
    read,
    read_peers,
    sizes_of_peers,
    spread,
    table,
    there,
    times,
)

from makel.evaluation import plots

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "benchmarks" / "figures"
PAGES = ("README.md", "docs/benchmarks/index.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
PAPER = {"toothbrush": 0.99}
"""The paper's pixel AUROC with ResNeXt101 (Tang et al. 2022, Table 2)."""


def first_model() -> str:
    """The default, measured as a user would run it."""
    rows = read("first_model.csv")
    body = []
    for (category,), of in grouped(rows, "category").items():
        body.append(
            (
                category,
                spread(of, "image_auroc"),
                spread(of, "pixel_auroc"),
                f"{PAPER[category]:.2f}" if category in PAPER else "–",
                spread(of, "aupro_30"),
                middle(of, "fit_s", ".0f"),
                middle(of, "latency_p50_ms"),
                f"{middle(of, 'cold_inspect_s', '.2f')} s, {middle(of, 'cold_inspect_peak_mb', '.0f')} MB",
            )
        )
    head = ("category", "image AUROC", "pixel AUROC", "paper's pixel", "AUPRO", "fit, s", "ms an image", "cold inspect")
    facts, seeds = rows[0], len({row["seed"] for row in rows})
    versions = ", ".join(f"{name} {number}" for name, number in json.loads(facts["versions"]).items())
    return table(head, body) + (
        f"\n{seeds} seeds, mean ± standard deviation; times are medians. {facts['machine']}; {versions}; "
        f"commit {facts['commit']}.\n"
    )


def methods() -> str:
    """Every method on the embedded backbone, from the benchmark's results."""
    rows = [
        row for row in read("here.csv") if row["backbone"] in ("efficientnet_lite0", "") and row["status"] == "done"
    ]
    first: dict[str, str] = {}
    for row in rows:  # the first set of blocks a method is measured with is its preset's own
        first.setdefault(row["method"], row["blocks"])
    groups = grouped([row for row in rows if row["blocks"] == first[row["method"]]], "method", "category")
    categories = sorted({category for _, category in groups})
    body = []
    for method in first:
        of = [groups.get((method, category), []) for category in categories]
        cells = [cell for each in of for cell in (spread(each, "image_auroc"), spread(each, "pixel_auroc"))]
        body.append((f"`{method}`", *cells))
    head = ("method", *(f"{category} {level}" for category in categories for level in ("image", "pixel")))
    return table(head, body) + (
        f"\nAUROC, mean ± standard deviation where there are several seeds, preset `fast`; commit {rows[0]['commit']}. "
        "All tables, in the paper's form: docs/benchmarks/tables.md.\n"
    )


def study() -> str:
    """Every candidate on every set, and what they decide when nothing is chosen on the set that it is reported on."""
    rows = read("study_skip_ae.csv")
    groups = grouped(rows, "candidate", "category")
    categories = list(dict.fromkeys(row["category"] for row in rows))

    def cell(measured: list[dict[str, str]] | None, metrics: tuple[str, ...]) -> str:
        return " / ".join(spread(measured, each) for each in metrics) if measured else "–"

    def of(*metrics: str) -> str:
        body = [
            (name, *(cell(groups.get((name, category)), metrics) for category in categories))
            for name in dict.fromkeys(row["candidate"] for row in rows)
        ]
        return table(("candidate", *categories), body)

    decided = leave_one_out.text(rows, read("peers.csv") if there("peers.csv") else ())
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    return (
        f"{decided}\nBy set, mean ± standard deviation over the seeds {seeds}. Image AUROC:\n\n{of('image_auroc')}"
        f"\nPixel AUROC / AUPRO:\n\n{of('pixel_auroc', 'aupro_30')}{came_from(rows)}"
    )


def paper_embedded() -> str:
    """The paper's own system on the embedded backbone, the paper's value beside."""
    rows = read("paper_embedded.csv")
    body = [
        (
            category,
            f"`{method}`",
            spread(of, "image_auroc"),
            spread(of, "pixel_auroc"),
            middle(of, "paper", ".2f"),
            spread(of, "aupro_30"),
            middle(of, "epochs", ".0f"),
            middle(of, "training_s", ".0f"),
        )
        for (category, method), of in grouped(rows, "category", "method").items()
    ]
    head = ("category", "method", "image AUROC", "pixel AUROC", "paper's pixel", "AUPRO", "epochs", "training, s")
    return f"""\
## The paper's own settings on the embedded backbone

`python benchmarks/paper_embedded.py DATA...`: the preset `paper` with blocks 1, 2 and 3 of EfficientNet-Lite0 at
256x256, for as many of its 150 epochs as two processor cores reach in the time given. *paper's pixel* is what its
Table 2 prints, with its own backbones.

{table(head, body)}{came_from(rows)}"""


def peers(results: str = "peers.csv") -> str:
    """makel and every model of the peer, on the same images; a table for each size that the peer was given."""
    rows = read_peers(results)
    sizes = sizes_of_peers(rows)
    tables = {size: peers_at(rows, size, is_only=len(sizes) == 1) for size in sizes}
    text = "\n".join(f"Anomalib's at {size}x{size}:\n\n" * (len(sizes) > 1) + each for size, each in tables.items())
    note = "\n¹ Measured on another machine, so its times are its own and compared with nothing.\n"
    return text + note * ("¹" in text) + came_from(rows)


def peers_at(rows: list[dict[str, str]], size: str, *, is_only: bool) -> str:
    """Those of one size, each category's with ours before them; what nobody has a figure of is no column.

    A category without peers of this size is shown where there is no other size.
    """
    theirs = grouped([row for row in rows if row["who"] != "makel" and row["size"] == size], "category", "who")
    body = []
    for category in dict.fromkeys(row["category"] for row in rows):
        ours = ours_beside(rows, category, size)
        peers_here = {who: of for (of_category, who), of in theirs.items() if of_category == category}
        if not (peers_here or is_only):
            continue
        for who, of in {"makel": ours, **peers_here}.items():
            if not of:
                continue
            well, where = done(of), f" at {of[0]['size']}" if of[0]["size"] != size else ""
            is_elsewhere = bool(ours) and middle(well, "fit_s") != "–" and elsewhere(well, ours)
            body.append(
                {
                    "category": category,
                    "": f"**makel**{where}" if who == "makel" else f"{who} ¹" if is_elsewhere else who,
                    "found at 5 %": spread(well, "found_5", 2),
                    "good rejected": spread(well, "false_reject_5", 2),
                    "promised": percent(well, "promise"),
                    "image AUROC": spread(well, "image_auroc") if well else "failed",
                    "pixel AUROC": spread(well, "pixel_auroc") if well else "failed",
                    "AUPRO": spread(well, "aupro_30"),
                    "fit, s": middle(well, "fit_s", ".0f"),
                    "fit, of ours": times(ratio(well, ours, "fit_s")),
                    "p50, ms": middle(well, "ms_p50"),
                    "p50, of ours": times(ratio(well, ours, "ms_p50")),
                    "p99, ms": middle(well, "ms_p99"),
                    "peak MB": middle(well, "peak_mb", ".0f"),
                }
            )
    head = tuple(name for name in body[0] if any(cells[name] not in ("–", "failed") for cells in body))
    return table(head, [tuple(cells[name] for name in head) for cells in body])


def peers_section() -> str:
    return f"""\
## Beside Anomalib

`python benchmarks/peers.py DATA...`: the same images, the same small backbone, as many threads as said below, each in a
process of its own. Where times are empty, `--accuracy-only` was asked for, beside other work. *found at 5 %* is the
share of the test's defects that are rejected by a threshold which
was asked to reject at most 5 % of good parts, *good rejected* the share of its good images that are. The threshold is
what makel's calibration makes of the scores of good images held out of the fit, the same ones for all: with fewer than
19 of them no less can be *promised* than 1 in their number and one. *fit* is from files to what can inspect; *ms* is
one decoded image to score and map, ours to the verdict. *of ours* is how many times as much it takes. *peak MB* is that
of the whole process, scoring the test images included.

{peers()}"""


def peers_made_section() -> str:
    return f"""\
## Beside Anomalib, on sets made of others

`python benchmarks/made_sets.py OUT --seed 7`, then `peers.py` on what it wrote: a part turned and moved, crops of half
an image, surfaces with made-up defects. The default was decided on other draws of such sets (see below), not on these.

{peers("peers_made.csv")}"""


NAMES = {"anomalib patchcore": "PatchCore", "anomalib padim": "PaDiM", "anomalib dfm": "DFM", "makel": "**makel**"}


def peers_readme() -> str:
    """What a 5 % promise finds on each set, then means and what it costs; a column each."""
    rows = done(read_peers("peers.csv"))
    groups = grouped(rows, "who", "size", "category")
    columns = sorted(grouped(rows, "who", "size"), key=lambda key: (key[0] != "makel", int(key[1])))
    is_sized = len({size for _, size in columns}) > 1
    names = tuple(NAMES.get(who, who) + f" at {size}" * is_sized for who, size in columns)

    def over_sets(name: str, key: str, form: str, *, are_times: bool = False) -> tuple[str, ...]:
        """The mean, or of times the median, over the sets that any column has; of a column that has them all.

        Times of another machine than ours are left out.
        """
        known = [[row for row in rows if (row["who"], row["size"]) == column and row[key]] for column in columns]
        every = {row["category"] for each in known for row in each}
        ours = next((each for (who, _), each in zip(columns, known, strict=True) if who == "makel"), [])
        cells = []
        for each in known:
            by_set = [average(of, key) for of in grouped(each, "category").values()]
            is_told = len(by_set) == len(every) > 0 and not (are_times and ours and elsewhere(each, ours))
            cells.append(f"{(median if are_times else mean)(by_set):{form}}" if is_told else "–")
        return (name, *cells)

    found = [
        (
            category,
            percent([row for row in rows if row["category"] == category], "promise"),
            *(spread(groups.get((*column, category), []), "found_5", 2) for column in columns),
        )
        for category in dict.fromkeys(row["category"] for row in rows)
    ]
    ends = (
        over_sets("**mean**", "found_5", ".2f"),
        over_sets("good images rejected, mean", "false_reject_5", ".2f"),
        over_sets("image AUROC, mean", "image_auroc", ".3f"),
        over_sets("pixel AUROC, mean", "pixel_auroc", ".3f"),
        over_sets("AUPRO, mean", "aupro_30", ".3f"),
        over_sets("fit, s, median", "fit_s", ".0f", are_times=True),
        over_sets("ms an image, median", "ms_p50", ".1f", are_times=True),
    )
    found += [(line[0], "", *line[1:]) for line in ends if set(line[1:]) != {"–"}]
    return table(("defects found", "promised", *names), found) + came_from(rows)


def few_images() -> str:
    """What more good images bring."""
    rows = done(read("few_images.csv"))
    metrics = ("image_auroc", "pixel_auroc", "aupro_30")
    groups = grouped(rows, "category", "who", "size", "augment", "n_images")
    ordered = sorted(groups, key=lambda key: (key[0], key[3], key[1] != "makel", *key[1:3], int(key[4])))
    body = [
        (
            category,
            f"{NAMES.get(who, who)} at {size}",
            augment,
            count,
            *(spread(of, metric) for metric in metrics),
            middle(of, "promise", ".2f"),
            spread(of, "false_reject_5", 2),
            spread(of, "miss_5", 2),
            middle(of, "fit_s", ".0f"),
        )
        for category, who, size, augment, count in ordered
        for of in (groups[category, who, size, augment, count],)
    ]
    head = ("category", "", "augmented", "good images", "image AUROC", "pixel AUROC", "AUPRO")
    head += ("rejects promised", "good rejected", "defects missed", "fit, s")
    seeds = ", ".join(sorted({row["seed"] for row in rows}))
    shown = "\n".join(
        f"![{name.replace('few_images-', '').replace('-', ', augmentation ')}](figures/{name}.svg)"
        for name in few_images_plots()
    )
    return f"""\
## How many good images

`python benchmarks/few_images.py DATA...`: good images drawn at random, a fifth of each draw held out for the threshold;
mean ± standard deviation over the seeds {seeds}. Whoever stands beside the default had the same images.

{table(head, body)}{came_from(rows)}
{shown}
"""


def few_images_plots() -> dict[str, str]:
    """The default's curves."""
    rows = [row for row in done(read("few_images.csv")) if row["who"] == "makel"]
    named = {"image_auroc": ("image AUROC", "line-a"), "pixel_auroc": ("pixel AUROC", "line-b")}
    named["aupro_30"] = ("AUPRO", "line-c")
    plots_by_name = {}
    for (category, augment), of in sorted(grouped(rows, "category", "augment").items()):
        by_count = sorted(grouped(of, "n_images").items(), key=lambda item: int(item[0][0]))
        lines = [
            plots.Line(
                name,
                np.array([(float(count), average(each, metric)) for (count,), each in by_count]),
                css,
            )
            for metric, (name, css) in named.items()
            if all(average(each, metric) is not None for _, each in by_count)
        ]
        low = floor(10 * min(line.points[:, 1].min() for line in lines) - 0.5) / 10  # room for the legend
        drawn = plots.trend_plot(lines, x_label="good images", y_label=category, y_low=low, logarithmic=True)
        plots_by_name[f"few_images-{category}-{augment}"] = plots.to_file(drawn)
    return plots_by_name


def fit_scaling() -> str:
    """What fitting costs as images grow in number."""
    rows = sorted(read("fit_scaling.csv"), key=lambda row: int(row["n_images"]))
    stages = [name for name in json.loads(rows[0]["stages_s"]) if any(name in row["stages_s"] for row in rows)]
    body = []
    for (count,), of in grouped(rows, "n_images").items():
        parts = [median(json.loads(row["stages_s"]).get(name, 0) for row in of) for name in stages]
        decode_s, backbone_s = (median(float(row[key]) for row in of) for key in ("decode_s", "backbone_s"))
        body.append(
            (
                count,
                middle(of, "fit_s"),
                *(f"{part:.1f}" for part in parts),
                f"{decode_s:.1f} + {backbone_s:.1f}",
                middle(of, "peak_mb", ".0f"),
            )
        )
    head = ("images", "fit, s", *stages, "floor, s", "peak MB")
    size_px = rows[0]["size_px"]
    return f"""\
## Fitting as images grow in number

`python benchmarks/fit_scaling.py`: made-up images of {size_px}x{size_px} pixels as PNG, no two the same, a process
each. *floor* is decoding the same files and nothing else, and one bare pass of the backbone over as many images.

{table(head, body)}{came_from(rows)}
![Seconds of fitting over the number of images](figures/fit_scaling.svg)
"""


def fit_scaling_plots() -> dict[str, str]:
    groups = grouped(sorted(read("fit_scaling.csv"), key=lambda row: int(row["n_images"])), "n_images")

    def points(*keys: str) -> np.ndarray:
        return np.array(
            [(float(n), median(sum(float(row[key]) for key in keys) for row in of)) for (n,), of in groups.items()]
        )

    lines = [plots.Line("fit", points("fit_s")), plots.Line("floor", points("decode_s", "backbone_s"), "line-b")]
    drawn = plots.trend_plot(lines, x_label="good images of 1024x1024", y_label="seconds")
    return {"fit_scaling": plots.to_file(drawn)}


GAIN = 1.2
"""How many times faster another runtime has to be to be worth a second way to run a model."""


def runtimes_table(rows: list[dict[str, str]]) -> str:
    """Every runtime by category, and whether it may become the default."""
    groups = grouped(rows, "runtime", "category")
    decisions = {}
    for (runtime,), of in grouped(rows, "runtime").items():
        failed = [row for row in of if row["gate"] != "passed"]
        flips = sum(int(row["flips"]) for row in of)
        gains = [
            ratio(groups["onnxruntime", category], each, "p99_ms")
            for (name, category), each in groups.items()
            if name == runtime and ("onnxruntime", category) in groups
        ]
        why = [f"fails the gate {len(failed)} of {len(of)} times"] * bool(failed)
        why += [f"{flips} verdicts flip"] * bool(flips)
        why += [f"not {GAIN}x as fast at p99"] * (not gains or min(gains) < GAIN)
        decisions[runtime] = f"no: {', '.join(why)}" if why else "yes"
    decisions["onnxruntime"] = "is what runs"
    speeds = ("p50_ms", "p95_ms", "p99_ms", "images_per_s_1", "images_per_s_8", "images_per_s_32")
    body = [
        (
            runtime,
            category,
            *(middle(of, key) for key in speeds),
            middle(of, "cold_s", ".2f"),
            spread(of, "image_auroc"),
            *(
                f"{sum(int(row[key]) for row in of)} of {sum(int(row['n_test']) for row in of)}"
                for key in ("flips", "flips_own")
            ),
            decisions[runtime],
        )
        for (runtime, category), of in groups.items()
    ]
    head = (
        "runtime", "category", "p50, ms", "p95, ms", "p99, ms", "images/s at 1", "at 8", "at 32", "cold, s",
        "image AUROC", "flipped", "at its own threshold", f"worth it ({GAIN}x)",
    )  # fmt: skip
    return table(head, body)


def runtimes() -> str:
    rows = read("runtimes.csv")
    return f"""\
## Runtimes

`python benchmarks/runtimes.py DATA...`: the same model.onnx in other runtimes, the network alone on two threads. One
becomes the default where it passes the parity gate, flips no verdict, and is {GAIN} times as fast at p99 on every
category.

{runtimes_table(rows)}{came_from(rows)}"""


def metrics_speed() -> str:
    """Pixel metrics against scikit-learn."""
    rows = read("metrics_speed.csv")
    body = []
    for row in rows:
        size = f"{int(row['pixels']) / 1e6:.1f} million"
        for who, prefix in (("makel, five numbers", ""), ("scikit-learn, AUROC", "sklearn_")):
            cells = (float(row[f"{prefix}{key}"]) for key in ("s", "cpu_s", "peak_mb"))
            body.append((size, who, *(f"{cell:,.{digits}f}" for cell, digits in zip(cells, (2, 2, 0), strict=True))))
    faster = " and ".join(times(float(row["sklearn_cpu_s"]) / float(row["cpu_s"])) for row in rows)
    furthest = max(float(row["error"]) for row in rows)
    return f"""## Pixel metrics against scikit-learn

`python benchmarks/metrics_speed.py`: as many maps as MVTec AD has test images, handed over one after another as a model
gives them; making them is not in the time. makel gives pixel AUROC, AP, F1-max and AUPRO at 0.30 and 0.05;
`roc_auc_score` is given all pixels at once and gives AUROC. Exact values come from a full sort and every single
threshold: no number of makel's is further than {furthest:.0e} from its exact value. Both run on one thread, so CPU
seconds are what compares them where other work stretches the wall time: {faster} as fast.

{table(("pixels", "", "seconds", "CPU seconds", "peak memory, MB"), body)}{came_from(rows)}"""


def station_load() -> str:
    """The station under load, beside bare calls on the same cores."""
    rows = read("station_load.csv")
    keys = {"images_per_s": ".0f", "share_of_bare": ".2f", "p50_ms": ".0f", "p99_ms": ".0f", "rss_end_mb": ".0f"}
    body = [
        (
            f"{row['size_px']} px",
            row["phase"],
            row["clients"],
            *(format(float(row[key]), form) if row[key] else "" for key, form in keys.items()),
            row["refused"],
            f"{row['lost']} and {row['doubled']}" if row["lost"] else "",
        )
        for row in rows
    ]
    head = (
        "images", "phase", "clients", "images/s", "of bare", "p50, ms", "p99, ms", "memory, MB", "refused",
        "lost and doubled",
    )  # fmt: skip
    return f"""## The station under load

`python benchmarks/station_load.py MODEL IMAGES`: PNG files to recorded verdicts, clients on the same cores. *of bare*
is the throughput over that of the faster of two ways to call `Inspector` without a station. Overload is four times as
many clients as the queue has places, each sending again as soon as it is refused; recovery is the four clients of
before, right after it.

{table(head, body)}{came_from(rows)}"""


BLOCKS = {
    # block: (what writes it, the results file without which it is empty)
    "first_model": (first_model, "first_model.csv"),
    "methods": (methods, "here.csv"),
    "study": (study, "study_skip_ae.csv"),
    "paper_embedded": (paper_embedded, "paper_embedded.csv"),
    "bars": (bars, "first_model.csv"),
    "peers": (peers_section, "peers.csv"),
    "peers_made": (peers_made_section, "peers_made.csv"),
    "peers_readme": (peers_readme, "peers.csv"),
    "few_images": (few_images, "few_images.csv"),
    "fit_scaling": (fit_scaling, "fit_scaling.csv"),
    "runtimes": (runtimes, "runtimes.csv"),
    "metrics_speed": (metrics_speed, "metrics_speed.csv"),
    "station_load": (station_load, "station_load.csv"),
}
PLOTS = {"few_images.csv": few_images_plots, "fit_scaling.csv": fit_scaling_plots}


def filled(text: str) -> str:
    """A page with its blocks replaced."""

    def fill(found: re.Match[str]) -> str:
        write, needed = BLOCKS[found[2]]
        return found[1] + ("\n" + write() + "\n" if there(needed) else "") + found[3]

    return BLOCK.sub(fill, text)


def figures() -> dict[str, str]:
    """The plots by name, as SVG files."""
    return {name: svg for needed, draw in PLOTS.items() if there(needed) for name, svg in draw().items()}


def take_over(bench: Path) -> None:
    """Commit-worthy results of a finished `makel bench` into benchmarks/results and docs/benchmarks."""
    shutil.copy(bench / "results.csv", RESULTS / "here.csv")
    docs = ROOT / "docs" / "benchmarks"
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    for figure in (bench / "figures").glob("figure5*.svg"):
        shutil.copy(figure, docs / "figures")
    lines = (bench / "tables.md").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [re.sub(r"^- \[", "![", line) for line in lines if "figures/figure4" not in line]
    (docs / "tables.md").write_text("".join(kept), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, metavar="DIR")
    if bench := parser.parse_args().bench:
        take_over(bench)
    for name in PAGES:
        page = ROOT / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {name}")
    for name, svg in figures().items():
        (FIGURES / f"{name}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()

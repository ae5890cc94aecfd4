#!/usr/bin/env python3
"""Put the committed results into README.md and docs: `python benchmarks/write_tables.py`. A test holds them equal.

Blocks between `<!-- results: NAME -->` and `<!-- end of results -->` are replaced; nothing else is touched.

With `--bench DIR` the results of `makel bench benchmarks/specs/here.toml --out DIR` are taken over first: its rows, its
tables, and its figures but those that show images, whose licences forbid it.
"""

import argparse
import csv
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/benchmarks/index.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
PAPER = {"toothbrush": 0.99}
"""The paper's pixel AUROC with ResNeXt101 (Tang et al. 2022, Table 2)."""


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def spread(rows: list[dict[str, str]], key: str) -> str:
    values = [float(row[key]) for row in rows if row[key]]
    if not values:
        return "–"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def middle(rows: list[dict[str, str]], key: str, form: str = ".1f") -> str:
    values = [float(row[key]) for row in rows if row[key]]
    return f"{median(values):{form}}" if values else "–"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def grouped(rows: list[dict[str, str]], *keys: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


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
    """What the choices behind skip_ae's preset fast are worth."""
    rows = read("study_skip_ae.csv")
    default = ("default", "harmonic", "geometric mean of levels")
    wanted = [
        (default[0], default[1], default[2]),
        *((name, *default[1:]) for name in dict.fromkeys(row["variant"] for row in rows) if name != "default"),
        (default[0], "arithmetic", default[2]),
        (default[0], "geometric", default[2]),
        (default[0], default[1], "joined map"),
    ]
    groups = grouped(rows, "variant", "map", "score", "category")
    categories = list(dict.fromkeys(row["category"] for row in rows))
    body = []
    for key in wanted:
        words = (
            key[0] if key[1:] == default[1:] else f"{key[1]} map" if key[1] != default[1] else f"score of the {key[2]}"
        )
        figures = [
            spread(groups[(*key, category)], metric)
            for category in categories
            for metric in ("image_auroc", "pixel_auroc", "aupro_30")
        ]
        body.append((words, *figures))
    short = ("image", "pixel", "AUPRO")
    head = ("changed", *(f"{category} {metric}" for category in categories for metric in short))
    return table(head, body) + f"\n{rows[0]['machine']}; {rows[0]['versions']}; commit {rows[0]['commit']}.\n"


BLOCKS = {"first_model": first_model, "methods": methods, "study": study}


def filled(text: str) -> str:
    """A page with its blocks replaced."""
    return BLOCK.sub(lambda found: found[1] + "\n" + BLOCKS[found[2]]() + "\n" + found[3], text)


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


if __name__ == "__main__":
    main()

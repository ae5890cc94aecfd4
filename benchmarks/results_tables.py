"""Results files, and what tables say of their rows."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

RESULTS = Path(__file__).resolve().parent / "results"


def there(name: str) -> bool:
    """Whether a study was run and its results committed."""
    return (RESULTS / name).exists()


def read(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read_peers(name: str) -> list[dict[str, str]]:
    """Rows of makel and its peers; `found_5` is what is not missed."""
    return [{**row, "found_5": str(1 - float(row["miss_5"])) if row["miss_5"] else ""} for row in read(name)]


def sizes_of_peers(rows: list[dict[str, str]]) -> list[str]:
    """Sides of the image that peers were measured at; ours where there are no peers."""
    theirs = {row["size"] for row in rows if row["who"] != "makel"}
    return sorted(theirs or {row["size"] for row in rows}, key=int)


def ours_beside(rows: list[dict[str, str]], category: str, size: str) -> list[dict[str, str]]:
    """Our rows that stand beside peers of a size: those at the same, or else at the nearest one."""
    ours = grouped([row for row in rows if row["who"] == "makel" and row["category"] == category], "size")
    nearest = min(ours, key=lambda key: (abs(int(key[0]) - int(size)), int(key[0])), default=None)
    return [] if nearest is None else ours[nearest]


def done(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Those that did not fail."""
    return [row for row in rows if not row["error"]]


def average(rows: list[dict[str, str]], key: str) -> float | None:
    values = [float(row[key]) for row in rows if row[key]]
    return mean(values) if values else None


def spread(rows: list[dict[str, str]], key: str, digits: int = 3) -> str:
    values = [float(row[key]) for row in rows if row[key]]
    if not values:
        return "–"
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def middle(rows: list[dict[str, str]], key: str, form: str = ".1f") -> str:
    values = [float(row[key]) for row in rows if row[key]]
    return f"{median(values):{form}}" if values else "–"


def percent(rows: list[dict[str, str]], key: str) -> str:
    value = average(rows, key)
    return "–" if value is None else f"{100 * value:.1f} %"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def grouped(rows: list[dict[str, str]], *keys: str) -> dict[tuple[str, ...], list[dict[str, str]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def came_from(rows: list[dict[str, str]]) -> str:
    """Machine, versions and commits of a results file."""
    every = {name: number for row in rows for name, number in json.loads(row["versions"]).items()}
    versions = ", ".join(f"{name} {number}" for name, number in every.items())
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    machines = "; or ".join(dict.fromkeys(row["machine"] for row in rows))
    return f"\n{machines}; {versions}; commit {commits}.\n"


def elsewhere(rows: list[dict[str, str]], ours: list[dict[str, str]]) -> bool:
    """Whether rows were measured on another machine than ours, so that times say nothing about each other."""
    return not {row["machine"] for row in rows} <= {row["machine"] for row in ours}


def ratio(theirs: list[dict[str, str]], ours: list[dict[str, str]], key: str) -> float | None:
    """How many times as much theirs takes as ours, by medians; None where they ran on different machines."""
    if elsewhere(theirs, ours):
        return None
    both = [[float(row[key]) for row in rows if row[key]] for rows in (theirs, ours)]
    return median(both[0]) / median(both[1]) if all(both) else None


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}x" if value >= 1 else f"{value:.2f}x"

"""What rows of candidates decide, when nothing is to be chosen on the set that it is reported on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from results_tables import grouped, table

DEFAULT = "default"
TIE = 0.001
"""Means over sets that lie no further apart are the same."""
METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro_30": "AUPRO",
    "found_5": "found at 5 %",
}
"""What is compared; the last is the share of defects that do not pass at the threshold of a 5 % promise."""

Row = dict[str, str]
Values = dict[str, dict[str, float]]
"""Candidate → set → the mean over seeds."""


@dataclass(frozen=True)
class Standing:
    """A candidate beside the default, on the sets and seeds that both have.

    Attributes:
        candidate: Its name.
        sets: How many sets these are.
        mean: Over these sets.
        gain: What the mean is above the default's.
        worst: The set where it is the lowest.
        lowest: Its value there.
        loses_most: The set where it loses the most against the default.
        loss: What it loses there; negative where it gains on every set.
        peer_set: The set where it is the furthest behind the best peer; "" where there are no peers.
        peer_loss: How far; negative where it is ahead on every set.
    """

    candidate: str
    sets: int
    mean: float
    gain: float
    worst: str
    lowest: float
    loses_most: str
    loss: float
    peer_set: str = ""
    peer_loss: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What would have been chosen without a set.

    Attributes:
        left_out: The set.
        best: The candidate with the best mean over the others; the default where it is as good.
        behind: How far the default's mean over the others is behind the best.
        best_here: The candidate that is best on the set left out.
        lost: What the default loses on it against that one.
    """

    left_out: str
    best: str
    behind: float
    best_here: str
    lost: float

    @property
    def holds(self) -> bool:
        """Whether the default would have been chosen."""
        return self.best == DEFAULT


def value(row: Row, metric: str) -> float | None:
    """A figure, higher being better; None where it is not known."""
    given = row["miss_5" if metric == "found_5" else metric]
    return None if given == "" else 1 - float(given) if metric == "found_5" else float(given)


def standings(rows: Sequence[Row], metric: str, peers: Sequence[Row] = ()) -> list[Standing]:
    """Every candidate in the order of the rows."""
    known = [row for row in rows if value(row, metric) is not None]
    best_peers = of_best_peers(peers, metric)
    found = []
    for (candidate,), of in grouped(known, "candidate").items():
        beside = _both(of, [row for row in known if row["candidate"] == DEFAULT], metric)
        if not beside:
            continue
        losses = {name: default - own for name, (own, default) in beside.items()}
        behind = {name: best_peers[name] - own for name, (own, _) in beside.items() if name in best_peers}
        worst, loses_most = min(beside, key=lambda name: beside[name][0]), max(losses, key=losses.__getitem__)
        peer_set = max(behind, key=behind.__getitem__, default="")
        own_mean, default_mean = (mean(pair[index] for pair in beside.values()) for index in (0, 1))
        found.append(
            Standing(
                candidate,
                len(beside),
                own_mean,
                own_mean - default_mean,
                worst,
                beside[worst][0],
                loses_most,
                losses[loses_most],
                peer_set,
                behind.get(peer_set, 0.0),
            )
        )
    return found


def verdicts(rows: Sequence[Row], metric: str) -> list[Verdict]:
    """One for each set left out, out of candidates that have all sets; none where there are fewer than two sets."""
    values = complete(rows, metric)
    sets = list(values.get(DEFAULT, {}))
    found = []
    for left_out in sets if len(sets) > 1 else ():
        means = {candidate: mean(of[name] for name in sets if name != left_out) for candidate, of in values.items()}
        best = max(means, key=means.__getitem__)
        behind = means[best] - means[DEFAULT]
        best_here = max(values, key=lambda candidate: values[candidate][left_out])
        lost = values[best_here][left_out] - values[DEFAULT][left_out]
        # A difference of decimal fractions is not exact.
        found.append(Verdict(left_out, DEFAULT if behind <= TIE + 1e-9 else best, behind, best_here, lost))
    return found


def complete(rows: Sequence[Row], metric: str) -> Values:
    """The candidates that were measured on every set and seed that the default was."""
    known = [row for row in rows if value(row, metric) is not None]
    needed = {(row["category"], row["seed"]) for row in known if row["candidate"] == DEFAULT}
    values = {}
    for (candidate,), of in grouped(known, "candidate").items():
        counted = [row for row in of if (row["category"], row["seed"]) in needed]
        if {(row["category"], row["seed"]) for row in counted} == needed:
            groups = grouped(counted, "category")
            values[candidate] = {name: mean(value(row, metric) for row in each) for (name,), each in groups.items()}
    return values


def of_best_peers(peers: Sequence[Row], metric: str) -> dict[str, float]:
    """Set → the best mean of any peer at any size there."""
    theirs = [row for row in peers if row["who"] != "makel" and not row["error"] and value(row, metric) is not None]
    best: dict[str, float] = {}
    for (category, _, _), of in grouped(theirs, "category", "who", "size").items():
        best[category] = max(best.get(category, 0.0), mean(value(row, metric) for row in of))
    return best


def _both(own: Sequence[Row], default: Sequence[Row], metric: str) -> dict[str, tuple[float, float]]:
    """Set → means of a candidate and of the default over the seeds that both have."""
    theirs = {(row["category"], row["seed"]): row for row in default}
    pairs: dict[str, list[tuple[float, float]]] = {}
    for row in own:
        if other := theirs.get((row["category"], row["seed"])):
            pairs.setdefault(row["category"], []).append((value(row, metric), value(other, metric)))
    return {name: (mean(a for a, _ in of), mean(b for _, b in of)) for name, of in pairs.items()}


def text(rows: Sequence[Row], peers: Sequence[Row] = ()) -> str:
    """All of it, as Markdown."""
    return "\n".join(part for metric in METRICS for part in _metric(rows, metric, peers))


def _metric(rows: Sequence[Row], metric: str, peers: Sequence[Row]) -> list[str]:
    standing = standings(rows, metric, peers)
    if not standing:
        return []
    beside = any(each.peer_set for each in standing)
    head = ("candidate", "sets", "mean", "against the default", "worst set", "largest loss against the default")
    body = [
        (
            each.candidate,
            str(each.sets),
            f"{each.mean:.4f}",
            "" if each.candidate == DEFAULT else _signed(each.gain),
            f"{each.lowest:.3f} ({each.worst})",
            _loss(each.loss, each.loses_most) if each.candidate != DEFAULT else "",
            *((_loss(each.peer_loss, each.peer_set) if each.peer_set else "–",) if beside else ()),
        )
        for each in standing
    ]
    parts = [f"{METRICS[metric]}:\n", table((*head, "largest loss against the best peer") if beside else head, body)]
    judged = verdicts(rows, metric)
    if not judged:
        return parts
    lines = [
        (
            each.left_out,
            "yes" if each.holds else f"no, {each.best} by {each.behind:.4f}",
            each.best_here,
            f"{each.lost:.4f}",
        )
        for each in judged
    ]
    count = sum(each.holds for each in judged)
    return [
        *parts,
        f"Left out in turn, of {len(complete(rows, metric))} candidates that have all sets: the default is the best of "
        f"the others' means, within {TIE}, {count} of {len(judged)} times.\n",
        table(("left out", "the default is best on the others", "best on this set", "the default loses"), lines),
    ]


def _loss(loss: float, where: str) -> str:
    return f"{loss:.3f} ({where})" if loss > 0 else "none"


def _signed(difference: float) -> str:
    return f"{difference:+.4f}".replace("-", "−")

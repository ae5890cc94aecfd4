"""All of a benchmark, from wherever it was left: cells, clock, tables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from makel import __version__, scale
from makel.bench import cells as grid
from makel.bench import page
from makel.bench.cells import Cell, Variant
from makel.bench.clock import IMAGES, Race, race
from makel.bench.measure import Job, measure
from makel.bench.spec import Spec
from makel.bench.spec import read as read_spec
from makel.bench.store import Store
from makel.bench.tables import Record, columns
from makel.datasets import Dataset

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class News:
    """A cell that has just been measured.

    Attributes:
        record: The cell and its result.
        done: Cells that have a result now.
        total: Cells there are.
        left_s: Seconds the rest will take if it goes on like this run so far.
    """

    record: Record
    done: int
    total: int
    left_s: float


@dataclass(frozen=True)
class Summary:
    """What a benchmark came to.

    Attributes:
        out: The folder of results.
        records: Every cell with its result, in the order of the file.
        measured: Cells that were measured by this run; the others had been before.
        remarks: What a person should know of the results as a whole, one line each.
    """

    out: Path
    records: tuple[Record, ...]
    measured: int
    remarks: tuple[str, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        """The cells that failed."""
        return tuple(record for record in self.records if not record.done)


def run(
    spec_path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    engine: str = "process",
    workers: int | None = None,
    data: Sequence[str | os.PathLike[str]] = (),
    retry: bool = False,
    keep_features: bool = False,
    tell: Callable[[News], None] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Measure what has not been measured yet, and write the tables.

    Args:
        spec_path: The TOML file, see `makel.bench.spec`.
        out: The folder of results; a run that was killed is taken up where it was.
        engine: "process" or "ray".
        workers: Cells that run at once; None for as many as the processor has room for.
        data: Folders in place of those the file names.
        retry: Measure failed cells again.
        keep_features: Leave the shared features there.
        tell: Called with each cell that has been measured.
        progress: Called with (stage, done, total).

    Returns:
        What it came to.

    Raises:
        UsageError: The file or a name in it cannot be used, or another benchmark writes into the folder.
        DatasetError: A folder of images cannot be read.
        MissingExtraError: The engine is not installed.
    """
    run_tasks = scale.engine(engine)
    spec = read_spec(spec_path, data)
    store = Store(Path(out).resolve())
    with store.alone():
        plan = _plan(spec, store, progress or (lambda *_: None))
        before = {cell: result for cell in plan.cells if (result := store.load("cells", plan.keys[cell]))}
        results = {cell: result for cell, result in before.items() if not retry or result["status"] == "done"}
        pending = [cell for cell in plan.in_order if cell not in results]
        jobs = [_job(cell, plan, spec, store) for cell in pending]
        count = workers or max(1, (os.cpu_count() or 1) // spec.threads)
        commit = source_commit()
        began = perf_counter()
        gpus = 1 if spec.device == "cuda" else 0
        outcomes = run_tasks(measure, jobs, workers=count, threads=spec.threads, gpus=gpus)
        for number, (job, outcome) in enumerate(outcomes, start=1):
            result = _settled(outcome)
            result |= {"cell": job.cell.to_json(), "commit": commit, "makel": __version__}
            store.save("cells", job.key, result)
            results[job.cell] = result
            store.trim_features(spec.features_gb * 1e9)
            if progress:
                progress("cells", len(results), len(plan.cells))
            if tell:
                left_s = (perf_counter() - began) / number * (len(jobs) - number)
                tell(News(Record(job.cell, result), len(results), len(plan.cells), left_s))
        if not keep_features:
            store.drop_features()
        records = tuple(Record(cell, results[cell]) for cell in plan.cells)
        times = _clock(records, plan, spec, store)
        remarks = _remarks(records, times)
        page.write_all(store.root, records, list(plan.datasets), times, remarks)
    return Summary(store.root, records, len(jobs), remarks)


@dataclass(frozen=True)
class _Plan:
    """The cells, where their images are, and the names of their results."""

    datasets: dict[str, Dataset]
    cells: list[Cell]
    keys: dict[Cell, str]
    timed: dict[Variant, Cell]

    @property
    def in_order(self) -> list[Cell]:
        return grid.in_running_order(self.cells, list(self.datasets))


def _plan(spec: Spec, store: Store, progress: Progress) -> _Plan:
    datasets = grid.datasets(spec, store.data)
    every = grid.expand(spec, list(datasets))
    used = [name for name in datasets if any(cell.category == name for cell in every)]
    digests = {}
    for number, name in enumerate(used, start=1):
        digests[name] = grid.digest(datasets[name])
        progress("data", number, len(used))
    keys = {cell: cell.key(digests[cell.category]) for cell in every}
    return _Plan({name: datasets[name] for name in used}, every, keys, _timed(every))


def _timed(every: Sequence[Cell]) -> dict[Variant, Cell]:
    """The cell whose model stands for a column of the table of inference times: all on one category where they can."""
    wanted = columns(every)
    categories = {cell.category: sum(each.category == cell.category for each in every) for cell in every}
    favourites = sorted(categories, key=lambda name: -categories[name])
    found = {}
    for variant in wanted:
        mine = [cell for cell in every if cell.variant == variant]
        found[variant] = min(mine, key=lambda cell: (favourites.index(cell.category), mine.index(cell)))
    return found


def _job(cell: Cell, plan: _Plan, spec: Spec, store: Store) -> Job:
    key, dataset = plan.keys[cell], plan.datasets[cell.category]
    return Job(
        cell=cell,
        key=key,
        dataset=dataset,
        showcase=grid.showcase(dataset),
        work=store.work,
        features=store.features,
        keep=store.model(key) if cell in plan.timed.values() else None,
        device=spec.device,
        provider=spec.provider,
        threads=spec.threads,
    )


def _settled(outcome: dict[str, Any] | scale.Lost) -> dict[str, Any]:
    if isinstance(outcome, scale.Lost):
        return {"status": "failed", "error": {"type": "WorkerLost", "message": outcome.reason}}
    return outcome


def _clock(records: Sequence[Record], plan: _Plan, spec: Spec, store: Store) -> dict[str, Any] | None:
    """Inference times, measured alone in a process of their own; None where no model is there."""
    done = {record.cell for record in records if record.done}
    timed = {variant: cell for variant, cell in plan.timed.items() if cell in done}
    if not timed:
        return None
    category = next(iter(timed.values())).category
    facts = [*(plan.keys[cell] for cell in timed.values()), spec.provider, spec.threads]
    key = sha256(" ".join(map(str, facts)).encode()).hexdigest()[:32]
    if (known := store.load("clock", key)) is not None:
        return known
    missing = [cell for cell in timed.values() if not (store.model(plan.keys[cell]) / "model.json").is_file()]
    for job, outcome in scale.engine("process")(
        measure, [_job(cell, plan, spec, store) for cell in missing], workers=1, threads=spec.threads
    ):
        result = _settled(outcome)
        if result["status"] != "done":
            return {"category": category, "error": f"{job.cell.words()}: {result['error']['message']}"}
    test = [sample for sample in plan.datasets[category].test if sample.label == "good"]
    job_clock = Race(
        models=tuple((variant.key, store.model(plan.keys[cell])) for variant, cell in timed.items()),
        images=tuple(sample.image_path for sample in test[:: max(1, len(test) // IMAGES)][:IMAGES]),
        device=spec.device,
        provider=spec.provider,
        threads=spec.threads,
    )
    for _, outcome in scale.engine("process")(race, [job_clock], workers=1, threads=spec.threads):
        if isinstance(outcome, scale.Lost):
            return {"category": category, "error": outcome.reason}
        if "error" in outcome:
            return {"category": category, **outcome}
        store.save("clock", key, {"category": category, **outcome})
    return store.load("clock", key)


def _remarks(records: Sequence[Record], times: dict[str, Any] | None) -> tuple[str, ...]:
    found = []
    commits = sorted({record.result["commit"] for record in records if record.result["commit"]})
    if len(commits) > 1:
        found.append(f"cells were measured at {len(commits)} commits ({', '.join(commits)}): start afresh to have one")
    machines = sorted({record.result["machine"] for record in records if record.done})
    if len(machines) > 1:
        found.append(f"cells were measured on {len(machines)} machines ({'; '.join(machines)}): compare no times")
    partial = sum(bool(record.result["metrics"]["n_left_out"]) for record in records if record.done)
    if partial:
        found.append(
            f"{partial} cells could not judge every test image, or use every mask: see their warnings in results.csv. "
            "Images that cannot be judged count as rejected in the rates, and have no part in AUROC"
        )
    if times and "error" in times:
        found.append(f"inference times are missing: {times['error']}")
    return tuple(found)


def source_commit() -> str:
    """The commit makel's source is at, with "-dirty" where it was changed since; "" where it is no working copy."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # no git
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

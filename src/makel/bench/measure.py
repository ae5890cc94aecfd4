"""One cell: fit, model folder, inspector, evaluation, and nothing else than what a user would run."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from makel.bench.cells import Cell
from makel.datasets import Dataset
from makel.evaluation.pictures import Heat, data_uri, outline_truth, thumbnail
from makel.evaluation.protocol import evaluate
from makel.images import read, read_header, read_mask
from makel.model.inspector import Inspector
from makel.types import Sample

METRICS = (
    "image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05",
    "false_reject_rate", "miss_rate", "n_good", "n_defect", "n_good_refused",
    "n_defect_refused", "n_unmarked", "n_left_out",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A cell and what it needs to be measured anywhere.

    Attributes:
        cell: The cell.
        key: The name of its result.
        dataset: Its images.
        showcase: The image its pictures show; None for none.
        work: Folder for the model while it is measured.
        features: Folder of shared features.
        keep: Where the model folder goes when it has been measured; None to drop it.
        device: Where to fit.
        provider: What the model runs on.
        threads: Processor threads.
    """

    cell: Cell
    key: str
    dataset: Dataset
    showcase: Sample | None
    work: Path
    features: Path
    keep: Path | None
    device: str
    provider: str
    threads: int


def measure(job: Job) -> dict[str, Any]:
    """The result of a cell as plain values. What goes wrong is a result as well: `error` holds its type and message."""
    try:
        return {"status": "done", "error": None, **_measure(job)}
    except Exception as error:  # whatever it is, it belongs to this cell and the rest goes on
        return {"status": "failed", "error": {"type": type(error).__name__, "message": str(error)}}


def _measure(job: Job) -> dict[str, Any]:
    import torch

    from makel.training.fit import fit

    torch.set_num_threads(job.threads)
    cv2.setNumThreads(job.threads)
    began = perf_counter()
    forget_peak_memory()
    variant, model = job.cell.variant, job.work / job.key
    config = _config(variant.config)
    fitted = fit(
        job.dataset,
        model,
        method=variant.method,
        preset=variant.preset,
        settings=config,
        seed=job.cell.seed,
        device=job.device,
        features=job.features,
    )
    inspector = Inspector.load(model, threads=job.threads, provider=job.provider)
    evaluation = evaluate(inspector, job.dataset.test, workers=job.threads)
    said, manifest = evaluation.to_json(), fitted.manifest
    result = {
        "metrics": {**{name: said[name] for name in METRICS[:-1]}, "n_left_out": len(evaluation.failures)},
        "seconds": {**manifest.fit.seconds, "evaluation": round(evaluation.seconds, 3)},
        "latency_ms": said["latency_ms"],
        "peak_memory_mb": peak_memory_mb(),
        "model_mb": round(sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6, 2),
        "n_fit": manifest.provenance.n_fit,
        "n_calibrate": manifest.provenance.n_calibrate,
        "warnings": [
            *manifest.fit.warnings,
            *fitted.unreadable,
            *(reason for _, reason in evaluation.failures),
        ],
        "makel": manifest.makel_version,
        "versions": manifest.provenance.versions,
        "machine": machine(job.device, job.provider, job.threads),
        "picture": _picture(inspector, job.showcase),
    }
    del inspector, evaluation
    if job.keep:
        job.keep.parent.mkdir(parents=True, exist_ok=True)
        if job.keep.exists():
            shutil.rmtree(job.keep)
        model.rename(job.keep)
    else:
        shutil.rmtree(model)
    result["seconds"]["cell"] = round(perf_counter() - began, 3)
    return result


def _config(config: str) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(config).items()}


def _picture(inspector: Inspector, sample: Sample | None) -> dict[str, str] | None:
    """Image, truth, heat map and mask at the pixel threshold, as pictures that stand in a page."""
    if sample is None or sample.mask_path is None:
        return None
    image, mask = read(sample.image_path), read_mask(sample.mask_path, image=read_header(sample.image_path))
    small = thumbnail(image, white_level=inspector.manifest.preprocessing.white_level)
    truth = mask.marked.astype(np.uint8)
    anomaly_map = inspector.inspect(image).anomaly_map
    threshold = inspector.calibration.pixel_threshold
    heat = Heat.over([anomaly_map], threshold)
    shape = (small.shape[0], small.shape[1])
    level = cv2.resize(anomaly_map, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    found = np.where(level > threshold, 255, 0).astype(np.uint8)
    return {
        "name": "/".join(sample.image_path.parts[-2:]),
        "image": data_uri(small),
        "truth": data_uri(outline_truth(small, truth)),
        "heat": data_uri(heat.draw(anomaly_map, shape)),
        "mask": data_uri(np.repeat(found[..., np.newaxis], 3, axis=2)),
    }


def forget_peak_memory() -> None:
    """Let the peak start from what the process holds now, where the system can do that (Linux)."""
    if platform.system() == "Linux":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return  # some containers forbid it; the peak is then that of the worker's whole life


def peak_memory_mb() -> float | None:
    """The process's peak resident memory in MB; None where the system does not tell."""
    if platform.system() == "Linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1000, 1)
    if find_spec("resource") is None:  # Windows
        return None
    resource: Any = import_module("resource")
    unit = 1e6 if platform.system() == "Darwin" else 1e3
    return round(float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / unit, 1)


def machine(device: str, provider: str, threads: int) -> str:
    """Processor, system, and what of them was used."""
    import torch

    from makel.training.fit import choose_device

    name = platform.processor() or platform.machine()
    if platform.system() == "Linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    where = choose_device(device).type
    card = f", {torch.cuda.get_device_name()}" if where == "cuda" else ""
    return (
        f"{name}, {os.cpu_count()} cores, {platform.system()}{card}; fit on {where}, inspect on {provider}, "
        f"threads {threads}"
    )

#!/usr/bin/env python3
"""Which runtime is the fastest for the file that ships, and does it still say the same; results/runtimes.csv.

    pip install --group runtimes
    python benchmarks/runtimes.py ../shared/data/toothbrush ../shared/data/magnetic_tile [--seeds 0]

One model is fitted for each category and seed, and its model.onnx is run by

    onnxruntime        as makel runs it
    openvino           OpenVINO reading the same file, fp32
    openvino-int8      the same with its convolutions quantised by NNCF
    onnxruntime-int8   ONNX Runtime's static quantisation of the convolutions (QDQ)

The quantised ones are calibrated on the good images that were fitted on. Convolutions alone are quantised: the whitened
distances behind them span too many powers of ten for 256 steps. All have two threads that do not spin.

Times are of the network alone, from a prepared image to score and map; decoding and resizing are not in them. Cold
start is a fresh process that imports makel's session and OpenVINO or ONNX Runtime, loads the file and scores one image.
`gate` is makel's parity gate on the held-out good images, which every fit has to pass against PyTorch, here against the
file as ONNX Runtime runs it; `flips` counts test images with another verdict, `flips_own` those with another one at
the threshold that the runtime's own scores of the held-out images give. At the end a table says what is fit to be the
default: it must pass the gate, flip nothing, and be a fifth faster at p99 on every category. A row that is there is not
measured again.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from rows import RESULTS, THREADS, Rows, facts, run

from makel.types import Scores

RUNTIMES = ("onnxruntime", "openvino", "openvino-int8", "onnxruntime-int8")
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
"""NNCF would report to its makers what it quantises; without this package it cannot."""

_CALLS = 200
_N_CALIBRATE = 64
_SECONDS = 20.0


class OpenVino:
    """A model in OpenVINO, behind the same `run` as `makel.model.session.Session`."""

    def __init__(self, path: Path) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            # Processors that have it would compute in bfloat16, which moves scores in the third digit.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = openvino.Core()
        self._model = core.compile_model(core.read_model(path), "CPU", settings)

    def run(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        out = self._model({"image": images})
        return Scores(image=out["score"].copy(), anomaly_map=out["anomaly_map"].copy())


class Quantised:
    """ONNX Runtime on a file that `makel.model.session.Session` refuses, as no export of makel holds its operators."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
        options.add_session_config_entry("session.intra_op.spin_duration_us", "100")  # as makel has it
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        score, anomaly_map = self._session.run(["score", "anomaly_map"], {"image": images})
        return Scores(image=score, anomaly_map=anomaly_map)


def open_runtime(name: str, folder: Path):
    """What runs a model by one of `RUNTIMES`; its file was written by `convert`."""
    if name.startswith("openvino"):
        return OpenVino(folder / ("model.onnx" if name == "openvino" else "openvino-int8.xml"))
    if name == "onnxruntime-int8":
        return Quantised(folder / "onnxruntime-int8.onnx")
    from makel.model.session import Session

    return Session((folder / "model.onnx").read_bytes(), threads=THREADS)


def convert(name: str, folder: Path, good: NDArray[np.float32]) -> None:
    """Quantise `model.onnx` for a runtime that takes it so."""
    model = folder / "model.onnx"
    if name == "openvino-int8":
        import nncf
        import openvino

        network = openvino.Core().read_model(model)
        others = {op.get_type_name() for op in network.get_ops()} - {"Convolution", "GroupConvolution"}
        quantised = nncf.quantize(
            network,
            nncf.Dataset(list(good), lambda image: {"image": image[None]}),
            subset_size=len(good),
            ignored_scope=nncf.IgnoredScope(types=sorted(others), validate=False),
        )
        openvino.save_model(quantised, folder / "openvino-int8.xml", compress_to_fp16=False)
    elif name == "onnxruntime-int8":
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.images = iter(good)

            def get_next(self):
                image = next(self.images, None)
                return None if image is None else {"image": image[None]}

        # The shapes are in the file; inferring them again fails on its symbolic batch.
        quant_pre_process(model, folder / "ready.onnx", skip_symbolic_shape=True)
        quantize_static(
            folder / "ready.onnx",
            folder / "onnxruntime-int8.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # without VNNI the sums of 8-bit products overflow
        )


def latency_ms(session, images: NDArray[np.float32]) -> dict[str, float]:
    elapsed: list[float] = []
    for call in range(-5, _CALLS):
        image = images[call % len(images)][None]
        began = perf_counter()
        session.run(image)
        if call >= 0:
            elapsed.append(1000 * (perf_counter() - began))
    return {f"p{rank}_ms": round(float(np.percentile(elapsed, rank)), 2) for rank in (50, 95, 99)}


def images_per_s(session, images: NDArray[np.float32], batch: int) -> float:
    stacked = images[np.arange(batch) % len(images)]
    session.run(stacked)
    began, done = perf_counter(), 0
    while done < 10 * batch and perf_counter() - began < _SECONDS:
        session.run(stacked)
        done += batch
    return round(done / (perf_counter() - began), 1)


def prepared(paths: Sequence[Path], preparation) -> NDArray[np.float32]:
    from makel.images import prepare, read

    return np.stack([prepare(read(path), preparation) for path in paths])


def compare(session, reference, inspector, category: Path) -> dict[str, object]:
    """What the runtime says of held-out and of test images, against what the shipped file says."""
    from makel.calibration import calibrate
    from makel.datasets import load
    from makel.errors import ParityError
    from makel.evaluation.metrics import rank_images
    from makel.training.fit import N_PARITY
    from makel.training.gate import check_parity

    manifest, dataset = inspector.manifest, load(category)
    threshold = manifest.calibration.image_threshold
    held_out = [dataset.root / name for name in manifest.provenance.holdout]
    own_scores = [session.run(prepared([path], manifest.preprocessing)).image[0] for path in held_out]
    own = calibrate(own_scores, own_scores, false_reject=manifest.calibration.requested_false_reject).image_threshold
    held_out = held_out[:N_PARITY]
    images = prepared(held_out, manifest.preprocessing)
    single = [reference.run(image[None]) for image in images]
    trained = Scores(
        image=np.concatenate([each.image for each in single]),
        anomaly_map=np.concatenate([each.anomaly_map for each in single]),
    )
    try:
        check_parity(images, [path.name for path in held_out], trained, session, threshold)
        gate = "passed"
    except ParityError:
        gate = "failed"
    scores: dict[str, list[float]] = {"ours": [], "theirs": []}
    for sample in dataset.test:
        image = prepared([sample.image_path], manifest.preprocessing)
        scores["ours"].append(float(reference.run(image).image[0]))
        scores["theirs"].append(float(session.run(image).image[0]))
    ours, theirs = np.array(scores["ours"]), np.array(scores["theirs"])
    defect = np.array([sample.label == "defect" for sample in dataset.test])
    return {
        "gate": gate,
        "flips": int(((ours > threshold) != (theirs > threshold)).sum()),
        "flips_own": int(((ours > threshold) != (theirs > own)).sum()),
        "n_test": len(ours),
        "worst_score_difference": f"{np.abs(ours - theirs).max() / np.median(ours):.2g}",
        "image_auroc": round(rank_images(theirs[~defect], theirs[defect]).auroc, 5),
    }


def measure(category: Path, seed: int, names: Sequence[str], add: Callable[[dict[str, object]], None]) -> None:
    import torch

    import makel
    from makel.datasets import load

    torch.set_num_threads(THREADS)
    dataset = load(category)
    with tempfile.TemporaryDirectory() as out:
        fitted = makel.fit(category, f"{out}/model", seed=seed)
        inspector = makel.Inspector.load(fitted.path, threads=THREADS)
        held_out = {dataset.root / name for name in fitted.manifest.provenance.holdout}
        good = [sample.image_path for sample in dataset.good if sample.image_path not in held_out][:_N_CALIBRATE]
        images = prepared(good, fitted.manifest.preprocessing)
        reference = open_runtime("onnxruntime", fitted.path)
        # int8 files lie outside the model folder, which holds nothing that is not the model's.
        work = Path(out) / "runtimes"
        work.mkdir()
        (work / "model.onnx").write_bytes((fitted.path / "model.onnx").read_bytes())
        np.save(work / "image.npy", images[:1])
        for name in names:
            convert(name, work, images)
            session = open_runtime(name, work)
            cold = sorted(run(sys.executable, __file__, category, "--cold", name, work).seconds for _ in range(5))[2]
            add(
                {
                    "category": category.name,
                    "seed": seed,
                    "runtime": name,
                    **latency_ms(session, images),
                    **{f"images_per_s_{batch}": images_per_s(session, images, batch) for batch in (1, 8, 32)},
                    "cold_s": cold,
                    **compare(session, reference, inspector, category),
                    "load": round(os.getloadavg()[0], 2),
                    **facts(openvino=version("openvino"), nncf=version("nncf")),
                }
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES))
    parser.add_argument("--out", type=Path, default=RESULTS / "runtimes.csv")
    parser.add_argument("--cold", nargs=2, metavar=("RUNTIME", "FOLDER"), help="score one image, here, and end")
    args = parser.parse_args()
    if args.cold:
        name, folder = args.cold[0], Path(args.cold[1])
        scores = open_runtime(name, folder).run(np.load(folder / "image.npy"))
        print(json.dumps({"score": float(scores.image[0])}))
        return
    rows = Rows(args.out, ("category", "seed", "runtime"))
    for category in args.categories:
        for seed in map(int, args.seeds.split(",")):
            names = [
                name
                for name in args.runtimes.split(",")
                if not rows.has(category=category.name, seed=seed, runtime=name)
            ]
            if names:
                measure(category, seed, names, rows.add)
    from write_tables import runtimes_table  # not above: a cold start is timed with what this file imports

    print(runtimes_table(rows.rows))


if __name__ == "__main__":
    main()

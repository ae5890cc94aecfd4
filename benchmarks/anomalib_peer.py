#!/usr/bin/env python3
"""Fit one of Anomalib's models without some of the good images, and score those and the test images.

    PEER_PYTHON benchmarks/anomalib_peer.py padim ../shared/data/toothbrush --held-out FILE --scores OUT.npz \
        --peer-script ../shared/peers/anomalib_run.py [--size 256] [--threads 2] [--calls 300]

`peers.py` runs this in the peer's own Python, which has no makel. Models, backbone and settings are those of the peer's
script, which is imported from where it lies; its docstring says how to install the peer.

Images held out are those that FILE names, one a line, relative to the category. The model is fitted on all others of
train/good: Anomalib's own validation part, which it takes from the training images for its thresholds, is left empty,
since the images held out are what thresholds come from here. Nothing else is changed, and seeds are 0.

Scores are the model's own, before Anomalib's post-processor clamps them. The file of scores holds `held_out` and `test`
(paths), `held_out_scores` and `test_scores`, and `maps` of the test images, (N, 256, 256) float32, where the category
has masks: pixel metrics are then computed by makel, for its own maps and for these alike.

One JSON line is printed. fit_s is Engine.fit; scoring the images held out is not in it. ms is one decoded image to
score and map, resize included: the median and the 99th percentile of the calls that scored, after five that do not
count, and of further ones until there are `--calls`.
"""

import argparse
import json
import sys
import tempfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter
from types import ModuleType

MODELS = ("patchcore", "padim", "dfm")
"""Those that are fitted in one pass over the images."""
MAP_SIDE = 256
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_WARM_UP = 5


def imported(path: Path) -> ModuleType:
    """The peer's script as a module; importing it makes the embedded backbone known to Anomalib."""
    spec = spec_from_file_location("peer_script", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"{path} is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def images_in(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES)


def parted(category: Path, held_out: Path | None) -> tuple[list[Path], list[Path]]:
    """The good images to fit on, and those held out."""
    good = images_in(category, "train/good/*")
    lines = held_out.read_text(encoding="utf-8").splitlines() if held_out else []
    kept = [category / line for line in lines if line]
    if strays := set(kept) - set(good):
        sys.exit(f"{held_out} names {min(strays)}, which is no image of {category}/train/good")
    return [path for path in good if path not in set(kept)], kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("category", type=Path)
    parser.add_argument("--peer-script", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True, metavar="OUT.npz")
    parser.add_argument("--held-out", type=Path, metavar="FILE")
    parser.add_argument("--size", type=int, default=256, help="side of the image that the model takes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=300, help="calls to time at least; 0 for those that score")
    args = parser.parse_args()
    category = args.category.resolve()
    fit, held_out = parted(category, args.held_out)
    test = images_in(category, "test/*/*")

    peer = imported(args.peer_script)
    peer.SIZE = args.size
    # After the peer's script, which has to patch timm before Anomalib takes what it needs of it.
    import numpy as np
    import torch
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.pre_processing import PreProcessor
    from PIL import Image
    from sklearn.metrics import roc_auc_score
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    transform = Compose([Resize((peer.SIZE, peer.SIZE), antialias=True), Normalize([0.5] * 3, [0.5] * 3)])
    model = peer.build(args.model, pre_processor=PreProcessor(transform=transform), evaluator=False, visualizer=False)
    with tempfile.TemporaryDirectory() as folder:
        to_fit = Path(folder) / "good"
        to_fit.mkdir()
        for path in fit:
            (to_fit / path.name).symlink_to(path)
        data = Folder(
            name="category",
            root=folder,
            normal_dir="good",
            train_batch_size=8,
            eval_batch_size=8,
            num_workers=0,
            seed=0,
            val_split_mode="none",
            test_split_mode="none",
        )
        engine = Engine(
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            limit_val_batches=0,
        )
        began = perf_counter()
        engine.fit(model=model, datamodule=data)
        fit_s = perf_counter() - began
        n_fit = len(data.train_data)
    if n_fit != len(fit):
        sys.exit(f"Anomalib fitted on {n_fit} images, not on {len(fit)}")
    model.eval()

    def decoded(path: Path) -> torch.Tensor:
        pixels = np.array(Image.open(path).convert("RGB"))
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255

    def scored(path: Path) -> tuple[float, np.ndarray, float]:
        """Score, map and milliseconds."""
        rgb = decoded(path)
        began = perf_counter()
        with torch.no_grad():
            out = model.model(transform(rgb))
        ms = 1000 * (perf_counter() - began)
        anomaly_map = out.anomaly_map.reshape(1, 1, *out.anomaly_map.shape[-2:]).float()
        at_side = torch.nn.functional.interpolate(anomaly_map, (MAP_SIDE, MAP_SIDE), mode="bilinear")
        return float(out.pred_score), at_side[0, 0].numpy(), ms

    for path in test[:_WARM_UP]:
        scored(path)
    of_held_out = [scored(path)[0] for path in held_out]
    has_masks = (category / "ground_truth").is_dir()
    scores, maps, ms = [], [], []
    for path in test:
        score, anomaly_map, elapsed_ms = scored(path)
        scores.append(score)
        ms.append(elapsed_ms)
        if has_masks:
            maps.append(anomaly_map)
    ms += [scored(test[call % len(test)])[2] for call in range(len(ms), args.calls)]
    np.savez(
        args.scores,
        held_out=[path.relative_to(category).as_posix() for path in held_out],
        held_out_scores=np.array(of_held_out),
        test=[path.relative_to(category).as_posix() for path in test],
        test_scores=np.array(scores),
        **({"maps": np.stack(maps)} if has_masks else {}),
    )
    p50, p99 = np.percentile(ms, [50, 99]).tolist()
    figures = {"fit_s": round(fit_s, 1), "ms_p50": round(p50, 2), "ms_p99": round(p99, 2)}
    auroc = float(roc_auc_score([path.parent.name != "good" for path in test], scores))
    print(json.dumps({"model": args.model, "size": peer.SIZE, "n_fit": n_fit, "image_auroc": auroc, **figures}))


if __name__ == "__main__":
    main()

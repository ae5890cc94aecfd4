"""Golden images: a few real prepared images with the scores the trained model gave them, kept in the model folder.

Replaying them shows that this machine, this ONNX Runtime and this provider compute what was fitted. They are stored
with 8 bits a channel, and their scores are those of exactly these values divided by 255.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from math import prod
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from makel.errors import ModelFolderError
from makel.model.folder import ModelFolder, faults_of
from makel.model.session import Runner
from makel.types import Scores

GOLDEN_DIR = "golden"

_MOST_HEADER_BYTES = 4096
"""Of what stands before the numbers of an array in a file."""


@dataclass(frozen=True)
class Difference:
    """How far a replayed golden image is from what was stored.

    Attributes:
        name: The file in the model folder.
        score: Absolute difference of the image scores.
        anomaly_map: Largest absolute difference of the maps.
    """

    name: str
    score: float
    anomaly_map: float


def quantise(images: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Prepared images as they are stored: (N, 3, H, W) float32 in [0, 1] to uint8, rounded."""
    return np.rint(images * 255).astype(np.uint8)


def restore(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The prepared images that were scored: uint8 to float32 in [0, 1]."""
    return images.astype(np.float32) / np.float32(255)


def write(folder: Path, images: NDArray[np.uint8], scores: Scores[NDArray[np.float32]]) -> None:
    """Store golden images below a staging folder, one npz each.

    Args:
        folder: The staging folder.
        images: (N, 3, H, W) uint8 from `quantise`.
        scores: What the trained model gives `restore(images)`.
    """
    (folder / GOLDEN_DIR).mkdir()
    for index, (image, score, anomaly_map) in enumerate(zip(images, scores.image, scores.anomaly_map, strict=True)):
        path = folder / GOLDEN_DIR / f"{index:03d}.npz"
        np.savez_compressed(path, image=image, score=np.float32(score), anomaly_map=anomaly_map.astype(np.float32))


def replay(folder: ModelFolder, runner: Runner) -> tuple[Difference, ...]:
    """Score the golden images again and compare.

    Args:
        folder: An opened model folder.
        runner: What to try, from `session.open_session`.

    Returns:
        One difference an image, in the order of the files.

    Raises:
        ModelFolderError: There are no golden images, one cannot be read, or one differs by more than the manifest's
            parity tolerances.
    """
    names = _names(folder)
    if not names:
        raise ModelFolderError(f"{folder.path} holds no golden images: nothing shows that it computes what was fitted")
    with faults_of(folder.path):
        return tuple(_replay_one(folder, name, runner) for name in names)


def images(folder: ModelFolder) -> list[NDArray[np.uint8]]:
    """The golden images of a model, (3, H, W) uint8 RGB each, as they went into it.

    Raises:
        ModelFolderError: The folder is no longer what was opened, or one is none.
    """
    return [_read(folder, name)[0] for name in _names(folder)]


def _names(folder: ModelFolder) -> list[str]:
    return sorted(name for name in folder.manifest.files if name.startswith(f"{GOLDEN_DIR}/"))


def _replay_one(folder: ModelFolder, name: str, runner: Runner) -> Difference:
    image, score, anomaly_map = _read(folder, name)
    got = runner.run(restore(image[None]))
    difference = Difference(
        name, float(np.abs(got.image[0] - score)), float(np.abs(got.anomaly_map[0] - anomaly_map).max())
    )
    parity = folder.manifest.parity
    # Written so that NaN fails.
    if not (difference.score <= parity.score_tolerance and difference.anomaly_map <= parity.map_tolerance):
        raise ModelFolderError(
            f"{folder.path / name} scores {float(got.image[0]):.6g} here and scored {float(score):.6g} when fitted, "
            f"and its map differs by {difference.anomaly_map:.3g}. Allowed are {parity.score_tolerance:.3g} and "
            f"{parity.map_tolerance:.3g}: use another provider or version of ONNX Runtime, or fit again here"
        )
    return difference


def _read(folder: ModelFolder, name: str) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Image, score and map of a golden image, if they are what `write` wrote for this model."""
    shape = folder.manifest.preprocessing.shape
    expected = {"image": (np.uint8, (3, *shape)), "score": (np.float32, ()), "anomaly_map": (np.float32, (1, *shape))}
    data = io.BytesIO(folder.read(name))
    try:
        with ZipFile(data) as archive:
            # What is unpacked is bounded here; packed, a few kilobytes can hold any number of zeros.
            found = {item.filename: item.file_size for item in archive.infolist()}
        most = max(3, np.dtype(np.float32).itemsize) * prod(shape) + _MOST_HEADER_BYTES
        if found.keys() != {f"{key}.npy" for key in expected} or max(found.values()) > most:
            raise ValueError(f"it holds {found}")
        data.seek(0)
        with np.load(data, allow_pickle=False) as stored:
            arrays = [stored[key] for key in expected]
        for array, (dtype, each) in zip(arrays, expected.values(), strict=True):
            if array.dtype != dtype or array.shape != each:
                raise ValueError(f"it holds {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of {each}")
    except Exception as error:  # zipfile, zlib and NumPy have about ten kinds of them
        reason = " ".join(f"{error}".split())[:300]
        raise ModelFolderError(f"{folder.path / name} is not a golden image: {reason}") from error
    image, score, anomaly_map = arrays
    return image, score, anomaly_map

"""`model.json`: everything that is known about a model, in one file whose bytes can be written in one way only.

The file is canonical JSON (sorted keys, two spaces, ASCII, no NaN, a newline at the end), it holds the SHA-256 of every
other file of the folder, and `model_id` is the SHA-256 of the rest of it. Reading writes it again and compares: a
changed space, a repeated key or a "1.50" for "1.5" is a changed file.
"""

from __future__ import annotations

import json
import pkgutil
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

import makel
from makel.calibration import Calibration
from makel.errors import MakelError, ModelFolderError
from makel.images import Preparation
from makel.model.tiling import Tiling
from makel.model.zones import Zones
from makel.types import Shape

SCHEMA_VERSION: Literal[1] = 1
MANIFEST_NAME = "model.json"
ONNX_NAME = "model.onnx"
MOST_MANIFEST_BYTES = 16 * 2**20
"""Of a manifest: the hashes of half a million images."""

_MOST_CONTAINERS = 100_000
"""Lists and objects in a manifest; each takes far more memory than the two bytes that can ask for it."""

_MOST_INPUT_PX = 2**25
"""Pixels of a model's input."""

REPORT_NAME = "report.html"
SEEN_NAME = "seen.jpg"
"""Thumbnails of the images that the model was fitted on, in the order of their hashes, and of those its thresholds come
from: `makel.images.likeness.pack`. Models of before have none."""
WEIGHTS_NAME = "weights.safetensors"

Runtime = Literal["onnx", "torch"]
RUNS: dict[Runtime, str] = {"onnx": ONNX_NAME, "torch": WEIGHTS_NAME}
"""What each runtime loads; a folder without that file is no model."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# One spelling on every system: no drive, no backslash, no way up, nothing hidden.
RelativePath = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$")
]


def _is_empty(value: object) -> bool:
    return not value


@dataclass(frozen=True)
class _Square(Preparation):
    """A preparation as it was written when every input was a square: with one `size`, which it is written with again.

    What was written then must stay what it is, to the byte.
    """


def _read_preparation(value: Any) -> Any:
    if not (isinstance(value, dict) and "size" in value):
        return value
    sides = {"height": value["size"], "width": value["size"]}
    others = {key: each for key, each in value.items() if key != "size"}
    return _SQUARE.validate_python({**others, **sides}) if not sides.keys() & others.keys() else value


def _write_preparation(preparation: Preparation) -> dict[str, Any]:
    values = asdict(preparation)
    if isinstance(preparation, _Square):
        values["size"] = values.pop("height")
        del values["width"]
    return values


_SQUARE = TypeAdapter(_Square)
_Preparation = Annotated[Preparation, BeforeValidator(_read_preparation), PlainSerializer(_write_preparation)]


class Section(BaseModel):
    """Base of every part of the manifest: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Method(Section):
    """How the model was fitted.

    Attributes:
        name: A module name in `makel.methods`.
        preset: The preset the config started from.
        config: Every setting, resolved; plain JSON values.
    """

    name: str
    preset: str
    config: dict[str, Any]

    @field_validator("name")
    @classmethod
    def _must_be_installed(cls, name: str) -> str:
        if name not in method_names():
            raise ValueError(f"method {name!r} is none of {', '.join(method_names())}")
        return name

    @field_validator("config")
    @classmethod
    def _as_read_back(cls, config: dict[str, Any]) -> dict[str, Any]:
        # Tuples become lists now, so that a manifest equals itself after a round trip.
        as_json: dict[str, Any] = json.loads(json.dumps(config, allow_nan=False))
        return as_json


class Backbone(Section):
    """The frozen network the features come from.

    Attributes:
        name: timm's or makel's short name.
        licence: SPDX identifier, or the licence's own words.
        weights_sha256: SHA-256 of the weights file.
        source: Where the weights came from.
        blocks: The blocks whose features are used, 1 is the finest.
    """

    name: str
    licence: str
    weights_sha256: Sha256
    source: str
    blocks: tuple[int, ...]


class Provenance(Section):
    """What the model was fitted on, where and when.

    Attributes:
        data_name: Name of the dataset.
        data_digest: `makel.datasets.digest` of the good images.
        n_fit: Number of good images fitted on.
        n_calibrate: Number of good images the thresholds come from.
        n_tiles: Number of tiles fitted on, of a tiled model; 0 of one that takes images whole.
        n_copies: Jittered copies of each image fitted on beside it.
        seed: The seed of everything random.
        created: UTC time, ISO 8601.
        machine: Processor and system, in words.
        versions: Package → version.
        holdout: Names of the held-out good images, relative to the dataset; empty where every image was used in turn.
        fit_hashes: `short_hash` of each image fitted on; empty where nobody noted them.
        calibrate_hashes: The same of the images the first thresholds came from.
    """

    data_name: str
    data_digest: str
    n_fit: int = Field(ge=1)
    n_calibrate: int = Field(ge=1)
    n_tiles: int = Field(0, ge=0)
    n_copies: int = Field(0, ge=0)
    seed: int
    created: str
    machine: str
    versions: dict[str, str]
    holdout: tuple[str, ...] = ()
    # Left out where there are none, as what was written before there were any must stay what it is, to the byte.
    fit_hashes: tuple[str, ...] = Field((), exclude_if=_is_empty)
    calibrate_hashes: tuple[str, ...] = Field((), exclude_if=_is_empty)


class Recalibration(Section):
    """Where the thresholds come from, when they are no longer those of the fit.

    Attributes:
        model_id: The model whose thresholds were replaced. The network is the same.
        data_name: Name of the folder of fresh good images.
        data_digest: As `Provenance.data_digest`, of the fresh images.
        n_images: Number of fresh images; 0 where the known scores were only given another budget.
        joined: Whether the scores that the thresholds before came from were kept beside those of the fresh images.
        created: UTC time, ISO 8601.
        makel_version: The makel that did it.
        hashes: `short_hash` of each image that the thresholds come from, as far as they were noted.
    """

    model_id: str
    data_name: str
    data_digest: str
    n_images: int = Field(ge=0)
    joined: bool
    created: str
    makel_version: str
    hashes: tuple[str, ...]


class GoodImages(Section):
    """What the good images are, those held out among them.

    Attributes:
        n: Number of those that can be read.
        n_grey_files: How many of them have one channel.
        n_coloured: How many show colour (`makel.images.Kind`).
        n_sizes: How many different sizes they have.
        smallest_px: Width and height of the smallest.
        largest_px: Of the largest.
    """

    n: int = Field(ge=1)
    n_grey_files: int = Field(ge=0)
    n_coloured: int = Field(ge=0)
    n_sizes: int = Field(ge=1)
    smallest_px: tuple[int, int]
    largest_px: tuple[int, int]


class Fit(Section):
    """How fitting went.

    Attributes:
        seconds: Stage → wall time in seconds.
        epochs: Passes made; 0 for closed-form methods.
        final_loss: Loss of the last epoch; None for closed-form methods.
        warnings: What went wrong without ending the fit, such as a network that collapsed, and what is odd about the
            images; one line each.
        images: What the good images are; None where nobody noted it.
    """

    seconds: dict[str, float]
    epochs: int = 0
    final_loss: float | None = None
    warnings: tuple[str, ...] = ()
    images: GoodImages | None = Field(None, exclude_if=_is_empty)


class Parity(Section):
    """How closely the exported model follows the trained one, on held-out images.

    Attributes:
        score_tolerance: Largest allowed difference of an image score, in units of score. It also bounds what batch
            size, order and machine may change.
        map_tolerance: The same for every value of an anomaly map.
        worst_score_difference: Largest difference found.
        worst_map_difference: The same for the maps.
        n_images: Number of images compared.
    """

    score_tolerance: float = Field(gt=0)
    map_tolerance: float = Field(gt=0)
    worst_score_difference: float = Field(ge=0)
    worst_map_difference: float = Field(ge=0)
    n_images: int = Field(ge=1)


class Tried(Section):
    """A candidate that a latency budget made fitting measure.

    Attributes:
        size: Height and width of the input, in pixels; one number of a square, in what was written before there were
            others.
        backbone: Name of the backbone; "" for a method without one.
        p99_ms: 99th percentile from a decoded image to its verdict.
    """

    size: int | Shape
    backbone: str
    p99_ms: float


class Latency(Section):
    """What was promised of the time an image takes, and what the finished model took, on the machine it was fitted on.

    Attributes:
        budget_ms: What was asked for: the 99th percentile from a decoded image to its verdict, one image at a time.
        p50_ms: Median of the finished model.
        p99_ms: 99th percentile of the finished model.
        n_calls: Calls measured.
        threads: Threads a call used at most.
        image_px: Width and height of the largest image among those measured.
        decode_p99_ms: 99th percentile of reading and decoding one file of them, which is not in the other figures.
        tried: Every candidate that was measured on the way.
    """

    budget_ms: float = Field(gt=0)
    p50_ms: float = Field(ge=0)
    p99_ms: float = Field(ge=0)
    n_calls: int = Field(ge=1)
    threads: int = Field(ge=1)
    image_px: tuple[int, int]
    decode_p99_ms: float = Field(ge=0)
    tried: tuple[Tried, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the finished model keeps what was promised."""
        return self.p99_ms <= self.budget_ms

    def explain(self) -> str:
        """The same in words."""
        width_px, height_px = self.image_px
        return (
            f"{'kept' if self.kept else 'NOT KEPT'}: {self.p99_ms:.1f} ms at the 99th percentile of {self.n_calls} "
            f"calls, {self.budget_ms:g} promised; from a decoded image ({width_px} x {height_px} px) to its verdict, "
            f"threads {self.threads}. Decoding a file takes {self.decode_p99_ms:.1f} ms more"
        )


class Draft(Section):
    """Everything about a model but its files: what fitting knows. `folder.write` makes a `Manifest` of it.

    Attributes:
        makel_version: The makel that fitted the model.
        method: How it was fitted.
        preprocessing: What `images.prepare` does to an image, or to each tile of it, before the model sees it.
        backbone: Where the features come from; None for a method that needs none.
        calibration: Thresholds, and the scores they come from.
        provenance: What it was fitted on, where and when.
        fit: How fitting went.
        parity: How closely the exported model follows the trained one.
        latency: What time an image was promised to take, and takes; None where no budget was given.
        zones: Which parts of an image count, and how large a defect must be; None where nobody said.
        runtime: What runs it: ONNX Runtime, or PyTorch where scoring needs gradients. Another value is another branch
            in `session.open_session`.
        tiling: How images are cut into tiles; None where the model takes them whole.
        recalibration: Where the thresholds come from; None where it was the fit.
        schema_version: Version of this layout.
    """

    makel_version: str = Field(default_factory=lambda: makel.__version__)
    method: Method
    preprocessing: _Preparation
    backbone: Backbone | None
    calibration: Calibration
    provenance: Provenance
    fit: Fit
    parity: Parity
    latency: Latency | None = None
    zones: Zones | None = None
    runtime: Runtime = "onnx"
    tiling: Tiling | None = None
    recalibration: Recalibration | None = Field(None, exclude_if=_is_empty)
    schema_version: Literal[1] = SCHEMA_VERSION

    @property
    def created(self) -> str:
        """When the model became what it is: fitted, or recalibrated."""
        return self.recalibration.created if self.recalibration else self.provenance.created

    def colour(self) -> str:
        """In words, whether the product is read in colour, and why."""
        read_as = "as grey" if self.preprocessing.colour == "grey" else "in colour"
        images = self.fit.images
        if images is None:
            return f"read {read_as}"
        files = f", {images.n_grey_files} are grey files" if images.n_grey_files else ""
        return f"read {read_as}: {images.n_coloured} of {images.n} good images show colour{files}"

    def sizes(self) -> str:
        """In words, what sizes the good images have; "" where nobody noted it."""
        if (images := self.fit.images) is None:
            return ""
        low, high = ("{} x {} px".format(*size) for size in (images.smallest_px, images.largest_px))
        return f"all {low}" if images.n_sizes == 1 else f"{images.n_sizes} sizes, from {low} to {high}"

    @property
    def calibrate_hashes(self) -> tuple[str, ...]:
        """`short_hash` of every image that the present thresholds come from, as far as they were noted."""
        return self.recalibration.hashes if self.recalibration else self.provenance.calibrate_hashes

    @property
    def seen_hashes(self) -> frozenset[str]:
        """`short_hash` of every image that was fitted on or that the present thresholds come from."""
        return frozenset((*self.provenance.fit_hashes, *self.calibrate_hashes))


class Manifest(Draft):
    """A model folder's `model.json`.

    Attributes:
        files: Every other file of the folder, relative with forward slashes, and its SHA-256.
        model_id: First 16 hexadecimal digits of the SHA-256 of the canonical JSON of everything else here.
    """

    files: dict[RelativePath, Sha256]
    model_id: str

    @field_validator("files")
    @classmethod
    def _must_hold_the_model(cls, files: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        # Without a valid runtime, which is its own error, there is nothing to look for.
        needed = RUNS.get(info.data.get("runtime", ""), MANIFEST_NAME)
        if needed not in files or MANIFEST_NAME in files:
            raise ValueError(f"files must list {needed} and not {MANIFEST_NAME}")
        return files

    @field_validator("preprocessing")
    @classmethod
    def _must_be_an_image(cls, value: Preparation) -> Preparation:
        if min(value.shape) < 1 or value.height * value.width > _MOST_INPUT_PX:
            raise ValueError(f"no model takes {value.width} x {value.height} px")
        if value.white_level is not None and not 0 < value.white_level <= 65535:
            raise ValueError(f"white_level {value.white_level} is no value of a 16-bit image")
        return value

    @classmethod
    def seal(cls, draft: Draft, files: dict[str, str]) -> Self:
        """The manifest of a draft and the SHA-256 of each file beside it."""
        unsigned = cls(**{name: getattr(draft, name) for name in Draft.model_fields}, files=files, model_id="")
        return unsigned.model_copy(update={"model_id": unsigned.compute_id()})

    def compute_id(self) -> str:
        """What `model_id` has to be."""
        return sha256(_canonical(self.model_dump(mode="json", exclude={"model_id"}))).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """The one way to write this manifest."""
        return _canonical(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Self:
        """The manifest in a file's bytes.

        Args:
            data: What `model.json` holds.
            path: Where it was read; for messages only.

        Raises:
            ModelFolderError: It is not a manifest, is of another schema, or differs by a byte from how makel writes it.
        """
        raw = read_json(data, path)
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != SCHEMA_VERSION:
            raise ModelFolderError(
                f"{path} has schema version {version!r}, this makel ({makel.__version__}) reads {SCHEMA_VERSION}: "
                "use the makel that wrote it, or fit again"
            )
        try:
            manifest = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ModelFolderError(f"{path} was damaged or changed: {where}: {first['msg']}") from error
        except MakelError as error:
            raise ModelFolderError(f"{path} was damaged or changed: {error}") from error
        if manifest.to_bytes() != data or manifest.compute_id() != manifest.model_id:
            raise ModelFolderError(
                f"{path} was changed after fitting: it does not match its own model_id {manifest.model_id!r}; "
                "restore the folder from a good copy, or fit again"
            )
        return manifest


def read_json(data: bytes, path: Path) -> Any:
    """The JSON of a file of a model folder, or of the station's beside one; whatever it is, it costs little.

    Args:
        data: What the file holds.
        path: Where it was read; for messages only.

    Raises:
        ModelFolderError: It is no JSON, or more or deeper than makel writes.
    """
    if len(data) > MOST_MANIFEST_BYTES or data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
        raise ModelFolderError(f"{path} was damaged or changed: it holds more than any model says of itself")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ModelFolderError(f"{path} was damaged or changed: it is nested too deeply") from error
    except ValueError as error:
        raise ModelFolderError(f"{path} was damaged or changed: it is not JSON ({error})") from error


def method_names() -> tuple[str, ...]:
    """The methods a model folder may name: the public modules of `makel/methods`, listed and not imported.

    Modules whose name ends in "layers" hold what methods share.

    It lives here and not in `makel.methods` because inspecting must not depend on fitting.
    """
    folders = [str(Path(root) / "methods") for root in makel.__path__]
    names = (module.name for module in pkgutil.iter_modules(folders))
    return tuple(sorted(name for name in names if not name.startswith("_") and not name.endswith("layers")))


def short_hash(content_sha256: str) -> str:
    """An image file's SHA-256 in hexadecimal as manifests note it: enough to tell it from any other."""
    return content_sha256[:16]


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, indent=2, allow_nan=False).encode("ascii") + b"\n"

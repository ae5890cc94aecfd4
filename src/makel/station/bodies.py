"""What answers look like, for OpenAPI. Answers are written from plain values; nothing is validated on the way out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from makel.calibration import Scheme
from makel.station import candidate, fitting
from makel.station.access import Role
from makel.station.causes import Cause, Since
from makel.types import Label, Result


class RegionBody(BaseModel):
    """One area of the thresholded anomaly map, in pixels of the image."""

    box_px: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1; x1 and y1 are exclusive")
    area_px: int
    peak: float
    zone: str = Field(description="That most of it lies in; empty for none")
    area_mm2: float | None = Field(description="Where the model has a scale")


class ZoneBody(BaseModel):
    """A zone that is judged by itself."""

    name: str
    verdict: Result
    score: float
    threshold: float
    p_value: float


class DecisionBody(BaseModel):
    """A recorded decision."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "number": 1807,
                "at": "2026-11-25T08:30:00.123456+00:00",
                "model": "toothbrush",
                "model_id": "0f3a0c9be2d81b57",
                "source": "http",
                "name": "part-0042.png",
                "image_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "verdict": "reject",
                "reason": "",
                "score": 7.31,
                "threshold": 4.02,
                "p_value": 0.0196,
                "regions": [
                    {"box_px": [40, 12, 71, 30], "area_px": 402, "peak": 9.8, "zone": "bore", "area_mm2": None}
                ],
                "latency_ms": 21.4,
                "arrival": "",
                "look": [0.35581, 0.67082, 0.02561, -0.0024, -0.0035, 0.90831],
                "zones": [{"name": "bore", "verdict": "reject", "score": 9.8, "threshold": 5.1, "p_value": 0.0098}],
                "answer": None,
                "hash": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            }
        }
    )

    number: int = Field(description="1, 2, ... without gaps; 0 while the record is away and the decision waits for it")
    at: str = Field(description="When the image was accepted: UTC, ISO 8601")
    model: str
    model_id: str = Field(description="Empty where no model answered")
    source: str = Field(description="http, watch, opcua or trigger; manual for an image that was tried by hand")
    name: str = Field(description="The caller's name for the part")
    image_sha256: str
    verdict: Result
    reason: str = Field(description="Why it is a fail-safe reject; empty where the score decided")
    score: float | None
    threshold: float | None
    p_value: float | None
    regions: list[RegionBody]
    latency_ms: float = Field(description="From accepted to decided")
    arrival: str
    look: list[float | None] | None = Field(
        description="Brightness, contrast, sharpness, shift to the right, shift down, match; null where no model saw it"
    )
    zones: list[ZoneBody] = Field(description="One for each zone that is judged by itself: which failed, and how far")
    answer: Label | None = Field(
        description="What a person last said of the part; null where nobody did, or it was taken back"
    )
    hash: str = Field(description="Of this entry in the chain")


class InspectedBody(DecisionBody):
    """The answer to one image."""

    path: str = Field(description="As name: the key that `makel inspect --json` uses")
    elapsed_ms: float | None = Field(description="From the decoded image to the verdict")
    overlay_png: str | None = Field(None, description="Base64, where it was asked for and a model answered")
    mask_png: str | None = Field(None, description="Base64, where it was asked for and a model answered")


class InspectedAllBody(BaseModel):
    """The answer to a form with images, in their order."""

    results: list[InspectedBody]


class HistoryBody(BaseModel):
    """A page of decisions, newest first."""

    decisions: list[DecisionBody]
    before: int | None = Field(description="Give this as `before` for the next page; null on the last one")


class VersionBody(BaseModel):
    """One version of a model."""

    version: int
    active: bool
    model_id: str
    created: str
    problem: str = Field(description="Why the folder no longer verifies; empty where it does")


class ModelBody(BaseModel):
    """A model that is served."""

    name: str
    active: int
    before: int | None = Field(description="The version that a rollback leads to; null where there is none")
    model_id: str = Field(description="What judges now")
    problem: str = Field(
        description="Why it is not served, or why its folder no longer verifies; empty where all is well"
    )
    queue: int = Field(description="Images under way at most")
    depth: int = Field(description="Images under way")
    method: str
    size_px: tuple[int, int] | None = Field(description="Width and height of what it sees of an image")
    image_threshold: float | None
    pixel_threshold: float | None
    promised_false_reject: float | None = Field(description="Share of good parts it rejects at most")
    n_calibrate: int | None = Field(description="Good images the promise rests on")
    versions: list[VersionBody]


class ModelsBody(BaseModel):
    """The models that are served."""

    models: list[ModelBody]


class AnswerBody(BaseModel):
    """What a person says of a part."""

    model_config = ConfigDict(extra="forbid")

    answer: Label | None = Field(description="null takes back what was said before")


class ActivateBody(BaseModel):
    """Which version is to judge."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1, le=2**31)


class ReadyBody(BaseModel):
    """Whether images are decided."""

    ready: bool
    obstacles: list[str] = Field(description="Why none is decided now")
    warnings: list[str] = Field(description="What is wrong while images are decided all the same")


class AliveBody(BaseModel):
    """The process answers."""

    alive: Literal[True]


class SessionBody(BaseModel):
    """Who asks."""

    name: str | None
    role: Role | None
    token_needed: bool


class NearestBody(BaseModel):
    """The good picture most like another one."""

    number: int | None = Field(description="Of its decision; null for a golden image of the model")
    golden: int | None = Field(description="Its index among the golden images; null for a decision")
    version: int | None = Field(description="Of the model that the golden image belongs to")
    difference: float = Field(description="Mean absolute difference; 0 for the same picture, 1 for black beside white")
    n_compared: int = Field(description="Pictures that were looked at")


class LevelBody(BaseModel):
    """A threshold that the calibration offers."""

    false_reject: float = Field(description="The share of good parts that may score above it")
    threshold: float


class ThresholdsBody(BaseModel):
    """What thresholds mean, from the scores of held-out good images."""

    version: int
    model_id: str
    scheme: Scheme
    scores: list[float] = Field(description="Of the held-out good images, ascending")
    recent: list[float] = Field(description="Of the latest parts this version judged, newest first")
    image_threshold: float
    promised_false_reject: float
    requested_false_reject: float
    levels: list[LevelBody] = Field(description="Highest threshold first; thinned out where there are many")
    explanation: str = Field(description="What the images can and cannot promise at the budget asked about")


class TriedBody(BaseModel):
    """A verdict that is not recorded."""

    verdict: Result
    score: float
    threshold: float
    p_value: float
    regions: list[RegionBody]
    zones: list[ZoneBody]
    size_px: tuple[int, int] = Field(description="Width and height of the image")
    view_jpg: str = Field(description="The image as a browser can show it, Base64")
    heat_png: str = Field(description="The heat to lay over it, Base64")


class FitSettingsBody(BaseModel):
    """What a fit was told; null leaves it to the preset."""

    preset: str
    size: int | tuple[int, int] | None = Field(description="Pixels, as the side of a square; or height and width")
    epochs: int | None
    false_reject: float
    calibrate: str
    method: str | None
    backbone: str | None
    blocks: list[int] | None = Field(description="Blocks of the backbone that features are taken from")
    augment: bool = Field(description="Whether jittered copies were fitted on as well")


class JobBody(BaseModel):
    """A fit, as it stands."""

    id: str
    name: str = Field(description="What the model will be served under")
    state: fitting.State
    stage: str = Field(description="What is being done")
    done: int = Field(description="How much of the stage is")
    total: int | None = Field(description="How much the stage has")
    n_images: int
    settings: FitSettingsBody
    by: str
    began: str
    ended: str = Field(description="Empty while it runs")
    problem: str = Field(description="Why it failed; empty where it did not")
    version: int | None = Field(description="Of the model that came out of it")
    summary: dict[str, Any] = Field(description="What `makel fit --json` printed")


class JobsBody(BaseModel):
    """The last fits."""

    obstacle: str = Field(description="Why nothing can be fitted on this machine; empty where it can")
    jobs: list[JobBody]


class LatencyBody(BaseModel):
    """Time from accepted to decided of the latest decisions, in milliseconds; null where there is none."""

    n: int
    p50: float | None
    p95: float | None
    p99: float | None


class LineBody(BaseModel):
    """A line's queue."""

    name: str
    depth: int
    queue: int


class ShelfBody(BaseModel):
    """Pictures that are kept."""

    n: int
    size_bytes: int


class PicturesBody(BaseModel):
    """Pictures and the disk they are on."""

    shelves: dict[str, ShelfBody]
    limit_bytes: int
    disk_free_bytes: int
    disk_total_bytes: int


class VerifiedBody(BaseModel):
    """What a verification of the record found."""

    at: str
    entry: int = Field(description="The last entry it looked at")
    problem: str = Field(description="Empty where the record is as it was written")


class RecordBody(BaseModel):
    """The record."""

    entries: int
    decisions: int
    waiting: int = Field(description="Decisions that wait for the record to come back")
    verified: VerifiedBody | None = Field(description="Since the station was started; null where nobody asked for it")


class OverviewBody(BaseModel):
    """How the station does."""

    obstacles: list[str] = Field(description="Why none is decided now")
    warnings: list[str] = Field(description="What is wrong while images are decided all the same")
    latency_ms: LatencyBody
    lines: list[LineBody]
    refused: int = Field(description="Images refused for want of room, since the station was started")
    pictures: PicturesBody
    record: RecordBody


class FindingBody(BaseModel):
    """Something that is not what it was."""

    what: Literal["score", "rejects", "brightness", "contrast", "sharpness", "shift_x", "shift_y", "match"]
    since: Since = Field(description="Compared with the model's good images, or the first parts here")
    p_value: float
    before: float
    now: float
    words: str


class CauseBody(BaseModel):
    """What most likely changed."""

    cause: Cause
    words: str


class BlockBody(BaseModel):
    """Parts that were tested together."""

    first: int = Field(description="Number of its first decision")
    last: int
    p_scores: float | None = Field(description="That passing parts score as the calibration images; null: not tested")
    p_rejects: float = Field(description="That its rejects are good parts within the promise")
    rejects: int
    findings: list[FindingBody]


class DriftStateBody(BaseModel):
    """How one line stands."""

    model: str
    model_id: str
    parts: int = Field(description="Parts of this version that were taken into account")
    changed: bool
    since: int | None = Field(description="Number of the first decision of the blocks that differ without a break")
    causes: list[CauseBody]
    findings: list[FindingBody]
    rejects: int
    of: int
    reject_rate: float | None
    reject_interval_95: tuple[float, float] | None = Field(description="Wilson")
    promised: float
    level: float = Field(description="Chance that a block of an unchanged line shows anything")
    learning: int = Field(description="Parts to come until the first parts here can be compared with")
    blocks: list[BlockBody] = Field(description="Oldest first, 60 at most")
    words: str
    block: int = Field(description="Parts in a block")
    false_alarm_every: int = Field(description="Parts among which an unchanged line has one false alarm, on average")


class CandidateRequestBody(BaseModel):
    """What candidate is wanted."""

    model_config = ConfigDict(extra="forbid")

    kind: candidate.Kind = "recalibrate"
    false_reject: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of good parts that may be rejected; that of the version that judges, but for kind `budget`, "
        "which has to say it",
    )
    join: bool = Field(
        True, description="Of a re-calibration: keep the scores of the present thresholds beside the new ones"
    )


class FlipBody(BaseModel):
    """A part of which the candidate says something else."""

    number: int
    name: str
    answer: Label | None
    before: Result
    after: Result
    score_before: float
    threshold_before: float
    score_after: float
    threshold_after: float


class RegressionBody(BaseModel):
    """What the comparison with the version that judges found."""

    known_good: int
    good_passed_before: int
    good_passed: int
    known_defects: int
    defects_rejected_before: int
    defects_rejected: int
    unanswered: int = Field(description="The latest parts nobody spoke of; they decide nothing")
    not_compared: int
    promised_before: float
    promised: float
    golden: int
    flips: list[FlipBody]
    problems: list[str] = Field(description="Why it must not judge; empty where it may")
    warnings: list[str]


class CandidateBody(BaseModel):
    """A version to be."""

    id: str
    name: str
    kind: candidate.Kind
    base_version: int
    base_model_id: str
    newest: int
    false_reject: float
    join: bool
    by: str
    role: str
    began: str
    state: candidate.State
    stage: str
    done: int
    total: int | None
    ended: str
    problem: str = Field(description="Why it was refused or failed; empty where it was not")
    n_passed: int = Field(description="Parts that passed, among those it is made of")
    n_said_good: int = Field(description="Rejects a person called good, among them")
    unanswered: int = Field(description="Rejects of the same time that nobody spoke of; left out")
    left_out: list[str]
    job: str = Field(description="The fit of a refit, for /jobs/{job}")
    version: int | None
    model_id: str
    summary: dict[str, Any]
    regression: RegressionBody | dict[str, Any] = Field(description="Empty before the comparison has ended")


class AdviceBody(BaseModel):
    """Which kind of candidate fits what people said."""

    kind: candidate.Kind
    words: str
    false_rejects: int
    refit_obstacle: str = Field(description="Why a refit is not possible here; empty where it is")


class CandidatesBody(BaseModel):
    """The candidates of a model, newest first."""

    advice: AdviceBody
    candidates: list[CandidateBody]


class DriftBody(BaseModel):
    """Every line."""

    models: list[DriftStateBody]

"""What answers look like, for OpenAPI. Answers are written from plain values; nothing is validated on the way out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class RegionBody(BaseModel):
    """One area of the thresholded anomaly map, in pixels of the image."""

    box_px: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1; x1 and y1 are exclusive")
    area_px: int
    peak: float


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
                "regions": [{"box_px": [40, 12, 71, 30], "area_px": 402, "peak": 9.8}],
                "latency_ms": 21.4,
                "arrival": "",
                "answer": None,
                "hash": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
            }
        }
    )

    number: int = Field(description="1, 2, ... without gaps; 0 while the record is away and the decision waits for it")
    at: str = Field(description="When the image was accepted: UTC, ISO 8601")
    model: str
    model_id: str = Field(description="Empty where no model answered")
    source: str
    name: str = Field(description="The caller's name for the part")
    image_sha256: str
    verdict: Literal["pass", "reject"]
    reason: str = Field(description="Why it is a fail-safe reject; empty where the score decided")
    score: float | None
    threshold: float | None
    p_value: float | None
    regions: list[RegionBody]
    latency_ms: float = Field(description="From accepted to decided")
    arrival: str
    answer: Literal["good", "defect"] | None = Field(description="What a person last said of the part")
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
    model_id: str = Field(description="What judges now")
    problem: str = Field(
        description="Why it is not served, or why its folder no longer verifies; empty where all is well"
    )
    queue: int = Field(description="Images under way at most")
    depth: int = Field(description="Images under way")
    method: str
    size_px: int | None
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

    answer: Literal["good", "defect"]


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
    role: Literal["operator", "engineer"] | None
    token_needed: bool

"""What the station decided, what people said of it, and the chain of hashes that holds both together.

Every entry of the record, whether a decision, an answer or a change somebody made, is one line of canonical JSON. Its
hash is SHA-256 over the hash before it and that line, so changing, removing or inserting an entry breaks the chain
from there on. What this proves and what it does not: docs/station/history.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal

from makel.errors import UsageError
from makel.station.look import Look
from makel.types import Label, Region, Result, ZoneVerdict

START = "0" * 64
"""The hash that stands before the first entry."""

MANUAL = "manual"
"""The source of an image that a person chose and sent by hand: it says nothing of how the line runs."""

Kind = Literal["decision", "answer", "audit"]


@dataclass(frozen=True)
class Decision:
    """One part, decided.

    Attributes:
        at: When the image was accepted: UTC, ISO 8601 with microseconds, as `now` gives it.
        model: The name the model is served under.
        model_id: The model that said it; "" where no model answered.
        source: Where the image came from: "http", "watch", "opcua", "trigger", or "manual" for one a person sent by
            hand from the page.
        name: The caller's name for the part, such as file name or serial number; "" for none.
        image_sha256: Of the bytes as they came, in hexadecimal; "" where none came.
        verdict: "pass" or "reject".
        reason: Why this is a fail-safe reject; "" where the score decided.
        score: Raw image score, higher is worse; None where no model answered.
        threshold: An image is rejected when its score is above this; None where no model answered.
        p_value: Share of good parts that would look at least this bad; None where no model answered.
        regions: Where the anomaly map exceeds the pixel threshold, largest peak first.
        latency_ms: Time from accepted to decided, in milliseconds.
        arrival: For a file, what makes this delivery of it different from any other, as `inbox.Arrival.key` gives it;
            "" for what came another way.
        look: What the image looks like; None where no model saw it.
        zones: One for each zone that is judged by itself.

    Raises:
        UsageError: A time in another form, or a number that is not finite.
    """

    at: str
    model: str
    model_id: str
    source: str
    name: str
    image_sha256: str
    verdict: Result
    reason: str
    score: float | None
    threshold: float | None
    p_value: float | None
    regions: tuple[Region, ...]
    latency_ms: float
    arrival: str = ""
    look: Look | None = None
    zones: tuple[ZoneVerdict, ...] = ()

    def __post_init__(self) -> None:
        if instant(self.at) != self.at:
            raise UsageError(f"at is {self.at!r}, but a decision's time is UTC with microseconds: {instant(self.at)}")
        if self.verdict not in ("pass", "reject"):
            raise UsageError(f"verdict is {self.verdict!r}: it is 'pass' or 'reject'")
        for name in ("score", "threshold", "p_value", "latency_ms"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise UsageError(f"{name} is {value}: a decision holds finite numbers, or None where no model answered")

    @property
    def of_the_line(self) -> bool:
        """Whether this is a part of the line, which rates, drift and thresholds are made of, and not a try by hand."""
        return self.source != MANUAL

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, one key an attribute."""
        numbers = {
            name: None if getattr(self, name) is None else float(getattr(self, name))
            for name in ("score", "threshold", "p_value", "latency_ms")
        }
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        look = None if self.look is None else self.look.to_json()
        regions, zones = ([each.to_json() for each in several] for several in (self.regions, self.zones))
        return plain | numbers | {"regions": regions, "look": look, "zones": zones}

    @property
    def failed_zones(self) -> tuple[ZoneVerdict, ...]:
        """Those that are rejected. Where a part is rejected and none of them is, what lies in none of them is."""
        return tuple(zone for zone in self.zones if zone.verdict == "reject")

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Decision:
        """What `to_json` gave; further keys are left alone."""
        regions = tuple(Region.from_json(region) for region in body["regions"])
        # Neither is there in what was written before there were such.
        look, zones = body.get("look"), tuple(ZoneVerdict.from_json(zone) for zone in body.get("zones", ()))
        plain = {item.name: body[item.name] for item in fields(cls) if item.name not in ("regions", "look", "zones")}
        return cls(**plain, regions=regions, look=None if look is None else Look.from_json(look), zones=zones)


@dataclass(frozen=True)
class Recorded:
    """A decision in the record.

    Attributes:
        number: 1, 2, ...: decisions are numbered without gaps.
        decision: What was decided.
        hash: Of its entry in the chain, in hexadecimal.
        answer: What a person last said of the part; None where nobody did, or it was taken back.
    """

    number: int
    decision: Decision
    hash: str
    answer: Label | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON: those of the decision, and number, answer and hash."""
        return {"number": self.number, **self.decision.to_json(), "answer": self.answer, "hash": self.hash}


@dataclass(frozen=True)
class Answer:
    """What a person said of a part that was decided. The last answer counts; earlier ones stay in the record.

    Attributes:
        number: Of the decision.
        answer: "good" or "defect"; None takes back what was said before.
        by: Who said it.
        at: When: UTC, ISO 8601 with microseconds.
    """

    number: int
    answer: Label | None
    by: str
    at: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Audit:
    """A change somebody made: of configuration, model or token.

    Attributes:
        by: Who made it.
        role: In which role, "operator" or "engineer".
        action: What was done, such as "activate".
        detail: Plain values for JSON that say which and how.
        at: When: UTC, ISO 8601 with microseconds.
    """

    by: str
    role: str
    action: str
    detail: Mapping[str, Any]
    at: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"by": self.by, "role": self.role, "action": self.action, "detail": dict(self.detail), "at": self.at}


@dataclass(frozen=True)
class Head:
    """The end of the record.

    Attributes:
        entry: Position of the last entry; 0 where there is none. Entries are numbered 1, 2, ... without gaps.
        number: Of the last decision; 0 where there is none.
        hash: Of the last entry.
    """

    entry: int
    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.entry}:{self.hash}"


@dataclass(frozen=True)
class Broken:
    """Where a record does not hold.

    Attributes:
        entry: Position of the first entry that is not as it was written; None for the database as a whole.
        why: What is wrong with it, for people.
    """

    entry: int | None
    why: str

    def __str__(self) -> str:
        return self.why if self.entry is None else f"entry {self.entry}: {self.why}"


def now() -> str:
    """This moment in the form of `Decision.at`."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def instant(text: str) -> str:
    """A moment in ISO 8601 brought to the form of `Decision.at`, whose order as text is the order in time.

    Without an offset it is UTC; a date alone is its first moment.

    Raises:
        UsageError: Not a moment in ISO 8601.
    """
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError):
        raise UsageError(f"{text!r} is not a time: write it as 2026-11-25T14:30:00Z, or a date as 2026-11-25") from None


def canonical(body: Mapping[str, Any]) -> str:
    """The one spelling of a JSON object that is hashed: keys sorted, no spaces, ASCII, shortest digits of a float.

    Raises:
        ValueError: A number that is not finite.
    """
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def link(before: str, line: str) -> str:
    """The hash of an entry: SHA-256 over the hash before it and its canonical JSON, in hexadecimal."""
    return hashlib.sha256(f"{before}{line}".encode("ascii")).hexdigest()

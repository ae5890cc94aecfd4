"""A version to be: what it is made of, how far it is, and what it has shown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

NAME = "candidate.json"

Kind = Literal["recalibrate", "refit", "budget"]
State = Literal["making", "testing", "ready", "refused", "failed", "active"]


@dataclass(frozen=True)
class Candidate:
    """A version to be, as it stands.

    Attributes:
        id: Its name here.
        name: The model it is for.
        kind: "recalibrate", "refit", or "budget", which is a re-calibration without images: other thresholds from the
            scores that the present ones come from.
        base_version: The version that judged when it was begun.
        base_model_id: The same.
        newest: The highest version there was.
        false_reject: The budget it is made for.
        join: Whether a re-calibration keeps the scores of the present thresholds beside the new ones.
        by: Who asked for it.
        role: In which role.
        began: When.
        state: "making", "testing", "ready" (it may be activated), "refused" (it failed the comparison), "failed" (it
            could not be made), "active" (it was activated).
        stage: What is being done.
        done: How much of the stage is.
        total: How much the stage has; None where that is not known.
        ended: When it was ready, refused or failed; "" before.
        problem: Why it was refused or failed; "" where it was not.
        n_passed: Pictures of parts that passed, among those it is made of.
        n_said_good: Pictures of rejects that a person called good.
        unanswered: Rejects of the same time that nobody spoke of, and that are left out.
        left_out: One line for each picture that was not used, the first of them.
        job: The fit of a refit; "" for a re-calibration.
        version: Its number, once it is among the versions.
        model_id: Once it is made.
        summary: What `makel recalibrate --json` or `makel fit --json` would print, without paths.
        regression: What the comparison found; empty before.
    """

    id: str
    name: str
    kind: Kind
    base_version: int
    base_model_id: str
    newest: int
    false_reject: float
    join: bool
    by: str
    role: str
    began: str
    state: State = "making"
    stage: str = "gathering"
    done: int = 0
    total: int | None = None
    ended: str = ""
    problem: str = ""
    n_passed: int = 0
    n_said_good: int = 0
    unanswered: int = 0
    left_out: tuple[str, ...] = ()
    job: str = ""
    version: int | None = None
    model_id: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    regression: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Keep it in its folder, whole or not at all."""
        partial = folder / f".{NAME}"
        partial.write_text(json.dumps(self.to_json()), encoding="utf-8")
        partial.replace(folder / NAME)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` kept.

        Raises:
            OSError: There is nothing, or it cannot be read.
            ValueError: It is no candidate.
        """
        try:
            known = json.loads((folder / NAME).read_bytes())
            return cls(**known | {"left_out": tuple(known["left_out"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{folder / NAME} is no candidate") from error

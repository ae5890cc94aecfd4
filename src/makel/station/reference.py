"""Good parts that later ones are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from makel.station.look import Look

N_START = 100
"""Parts that passed, of the first blocks here in which nothing was found, that later ones are compared with."""


@dataclass
class Reference:
    """Good parts to compare with.

    Attributes:
        scores: Of those that passed.
        looks: Of the same, where they have one.
    """

    scores: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether it holds enough parts to compare with."""
        return len(self.scores) >= N_START

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"scores": list(self.scores), "looks": [look.to_json() for look in self.looks]}

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Self:
        """What `to_json` gave; further keys are left alone.

        Raises:
            KeyError: It is something else.
            TypeError: Likewise.
            ValueError: Likewise.
        """
        return cls([float(score) for score in known["scores"]], [Look.from_json(look) for look in known["looks"]])

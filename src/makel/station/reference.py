"""Good parts that later ones are compared with, and their file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

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

    def write(self, path: Path) -> None:
        """Keep it in a file, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}")
        looks = [look.to_json() for look in self.looks]
        partial.write_text(json.dumps({"scores": self.scores, "looks": looks}), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` kept.

        Raises:
            OSError: There is no such file, or it cannot be read.
            ValueError: It holds something else.
        """
        try:
            known = json.loads(path.read_bytes())
            return cls([float(score) for score in known["scores"]], [Look.from_json(look) for look in known["looks"]])
        except (TypeError, KeyError) as error:
            raise ValueError(f"{path} holds no parts to compare with") from error

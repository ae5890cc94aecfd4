"""What a station asks of the models it serves, and what it signs its own with."""

from __future__ import annotations

import threading
from pathlib import Path

from makel.model.folder import ModelFolder
from makel.signing.keys import load_private, make_key, require
from makel.signing.signature import signature_path
from makel.signing.signer import Signer
from makel.signing.trust import Trust

KEY_NAME = "station.key"


class Seal:
    """Whom a station trusts, itself included, and its own key. Thread-safe.

    DIR/keys/station.key    private, made when the station signs for the first time
    DIR/keys/station.pub    its public part, for whoever is to trust what this station makes
    """

    def __init__(self, folder: Path, trusted: tuple[Path, ...] = (), key: Path | None = None) -> None:
        """Read what is trusted.

        Args:
            folder: The station's.
            trusted: Public keys and certificates; without any, models need no signature.
            key: The station's own private key; None for the one in its folder.

        Raises:
            MissingExtraError: Something is to be signed or checked, and `makel[sign]` is not installed.
            UsageError: A file cannot be used.
        """
        self._lock = threading.Lock()
        self._own = key is None
        self._key = key or folder / "keys" / KEY_NAME
        self._signs = bool(trusted) or key is not None
        self._trust: Trust | None = None
        if self._signs:
            require("a station with --trusted or --signing-key")
            if key is not None:
                load_private(key)  # said at the start, not when the first candidate is made
        if trusted:
            self._trust = Trust(trusted)
            self._trust_own()

    def check(self, folder: ModelFolder) -> None:
        """Make sure that a model may be served.

        Raises:
            SignatureError: Models need a signature here, and this one has none that holds and is trusted.
        """
        if self._trust is not None:
            self._trust.check(folder)

    def sign(self, folder: Path, origin: Path | None = None) -> None:
        """Sign what the station made, where it signs at all.

        Args:
            folder: A model folder.
            origin: The one it was recalibrated from, where that is signed.

        Raises:
            MakelError: It cannot be signed.
        """
        if not self._signs:
            return
        with self._lock:
            if self._own and not self._key.exists():
                make_key(self._key)
                self._trust_own()
        known = origin if origin is not None and signature_path(origin).exists() else None
        Signer(self._key).sign(folder, known)

    def _trust_own(self) -> None:
        """Trust the public part of the private key itself: what lies beside it may be anybody's."""
        if self._trust is not None and self._key.exists():
            self._trust.add_key(load_private(self._key).public_key(), self._key)

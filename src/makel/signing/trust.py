"""Whom one trusts, and whether a model folder was signed by one of them as it is now.

A certificate that has expired is refused whenever it is looked at: a signature holds no proof of when it was made.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from makel.errors import SignatureError
from makel.model.folder import ModelFolder
from makel.signing.keys import load_trusted, may_sign, public_pem, require
from makel.signing.signature import Signature, damaged, name_of_certificate, name_of_key, read_origins, signature_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate


@dataclass(frozen=True)
class Link:
    """One model of a chain.

    Attributes:
        model_id: The model.
        signed_by: Who signed it, in words.
        trusted_by: File of the key or certificate that vouches for it; None where none does.
        problem: Why none does; "" where one does.
    """

    model_id: str
    signed_by: str
    trusted_by: Path | None = None
    problem: str = ""


class Trust:
    """Keys and certificates that are trusted. Thread-safe."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read them, once.

        Args:
            paths: Public keys, and certificates: that of a signer, or one above it.

        Raises:
            MissingExtraError: `makel[sign]` is not installed.
            UsageError: A file is neither.
        """
        require("checking signatures")
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._keys: dict[str, tuple[Path, Any]] = {}
        self._certificates: list[tuple[Path, list[Certificate]]] = []
        for path in paths:
            self.add(path)

    def add(self, path: Path) -> None:
        """Trust one more.

        Raises:
            UsageError: The file is neither a public key nor a certificate.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        trusted = load_trusted(path)
        if not isinstance(trusted, list):
            self.add_key(trusted, path)
            return
        with self._lock:
            self._certificates.append((path, trusted))
            self._names += [name_of_certificate(each.public_bytes(Encoding.DER)) for each in trusted]

    def add_key(self, key: ec.EllipticCurvePublicKey, path: Path) -> None:
        """Trust a public key.

        Args:
            key: The key.
            path: Where it is from, for those who ask what vouches for a model.
        """
        from model_signing import verifying

        pem = public_pem(key)
        hint = sha256(pem).hexdigest()
        with self._lock, TemporaryDirectory(prefix="makel-verify-") as scratch:
            public = Path(scratch) / "public"
            public.write_bytes(pem)
            self._keys[hint] = (path, verifying.ec_key.Verifier(public))
            self._names.append(name_of_key(hint))

    def check(self, folder: ModelFolder) -> Link:
        """Make sure that somebody trusted signed a model folder as it is.

        What is compared is what was opened: `folder.read` gives no byte that the signature does not cover.

        Args:
            folder: From `open_folder`.

        Raises:
            SignatureError: It is not signed, by nobody trusted, or in another state; or a certificate has expired.
        """
        signature = Signature.read(folder.path)
        if signature is None:
            raise SignatureError(
                f"{folder.path} is not signed: there is no {signature_path(folder.path)}. Copy the signature along "
                "with the folder, or let it be signed with `makel sign`"
            )
        by = self._vouch(signature)
        signature.check_covers(folder)
        return Link(folder.manifest.model_id, signature.signer, by)

    def chain(self, folder: ModelFolder) -> list[Link]:
        """A model, checked, and the signed ones it came from, nearest first; of these also who is not trusted.

        Raises:
            SignatureError: As `check`, or what is kept of the models before is damaged.
        """
        links = [self.check(folder)]
        for origin in read_origins(folder.path, folder.manifest):
            signature = origin.signature
            try:
                links.append(Link(origin.manifest.model_id, signature.signer, self._vouch(signature)))
            except SignatureError as error:
                links.append(Link(origin.manifest.model_id, signature.signer, None, str(error)))
        return links

    def _vouch(self, signature: Signature) -> Path:
        """The file that vouches for what a signature states."""
        with self._lock:
            if signature.hint:
                if signature.hint not in self._keys:
                    raise self._foreign(signature, "")
                path, verifier = self._keys[signature.hint]
                _verify(verifier, signature)
                return path
            why = ""
            for path, trusted in self._certificates:
                if not (why := _objection(trusted, signature)):
                    _verify(_certificate_verifier(trusted), signature)
                    _check_now(trusted, signature)
                    return path
            raise self._foreign(signature, why)

    def _foreign(self, signature: Signature, why: str) -> SignatureError:
        reason = f" ({why})" if why else ""
        return SignatureError(
            f"{signature.path} is by {signature.signer}, which is not trusted{reason}; trusted: "
            f"{', '.join(self._names)}"
        )


def _verify(verifier: Any, signature: Signature) -> None:
    """Whether the signature holds, and states what was read from it."""
    from model_signing import verifying

    try:
        with TemporaryDirectory(prefix="makel-verify-") as scratch:  # the very bytes that were read, not the file anew
            path = Path(scratch) / "signature"
            path.write_bytes(signature.data)
            stated = verifier.verify(verifying.sigstore_pb.Signature.read(path))
        files = {each.identifier: each.digest.digest_hex for each in stated.resource_descriptors()}
    except Exception as error:  # the library raises whatever comes: to the user it is one thing
        raise damaged(signature.path, error) from error
    if files != signature.files:
        raise damaged(signature.path, ValueError("it can be read in two ways"))


def _certificate_verifier(trusted: list[Certificate]) -> Any:
    """A verifier of the library's for one signature: it keeps the time of the first one it sees for all that follow."""
    from cryptography.hazmat.primitives.serialization import Encoding
    from model_signing import verifying
    from OpenSSL import crypto

    with TemporaryDirectory(prefix="makel-verify-") as scratch:
        path = Path(scratch) / "trusted"
        path.write_bytes(b"".join(each.public_bytes(Encoding.PEM) for each in trusted))
        verifier = verifying.certificate.Verifier([path])
    verifier._store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    return verifier


def _objection(trusted: list[Certificate], signature: Signature) -> str:
    """Why trusted certificates do not vouch for that of a signature when it began to hold; "" where they do."""
    from cryptography import x509

    try:
        signed = x509.load_der_x509_certificate(signature.certificates[0])
        why = _walk(trusted, signature, signed.not_valid_before_utc)
        return why or ("" if may_sign(signed) else "it was not issued for signing")
    except Exception as error:  # what lies in a signature may be anything
        raise damaged(signature.path, error) from error


def _check_now(trusted: list[Certificate], signature: Signature) -> None:
    from cryptography import x509

    if why := _walk(trusted, signature, datetime.now(UTC)):
        signed = x509.load_der_x509_certificate(signature.certificates[0])
        raise SignatureError(
            f"{signature.path} is by {signature.signer}, which does not hold today: {why}. It holds from "
            f"{signed.not_valid_before_utc:%Y-%m-%d} to {signed.not_valid_after_utc:%Y-%m-%d}: let the folder be "
            "signed with a certificate that holds"
        )


def _walk(trusted: list[Certificate], signature: Signature, at: datetime) -> str:
    """Why the chain from a signature's certificate to a trusted one does not hold at a time; "" where it does."""
    from cryptography import x509
    from OpenSSL import crypto

    store = crypto.X509Store()
    # What is trusted need not be a root: the signer's own certificate, or one in between, may be given.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.set_time(at)
    for each in trusted:
        store.add_cert(crypto.X509.from_cryptography(each))
    loaded = map(x509.load_der_x509_certificate, signature.certificates)
    first, *above = map(crypto.X509.from_cryptography, loaded)
    try:
        crypto.X509StoreContext(store, first, above).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return ""

"""Keys and certificates as files: read with a clear word where they are not what they should be, and made."""

from __future__ import annotations

import os
import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from makel.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509 import Certificate

_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
_MOST_BYTES = 2**20


def require(what: str) -> None:
    """Make sure that signing is installed.

    Raises:
        MissingExtraError: It is not.
    """
    if any(find_spec(package) is None for package in ("model_signing", "OpenSSL", "cryptography")):
        raise MissingExtraError(what, "sign")


def load_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key.

    Raises:
        UsageError: It cannot be read, is none, has a password, or is of a kind that models are not signed with.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read(path)
    try:
        key = serialization.load_pem_private_key(data, None)
    except TypeError as error:
        raise UsageError(
            f"{path} has a password: take it off with `openssl pkey`, in a folder only you can read"
        ) from error
    except Exception as error:
        raise UsageError(
            f"{path} is no private key in PEM: make one with `openssl ecparam`, see `makel sign`"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise _wrong_kind(path)
    return key


def load_certificates(path: Path) -> list[Certificate]:
    """The certificates in a PEM file, in its order.

    Raises:
        UsageError: It cannot be read, or holds none.
    """
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_read(path))
    except ValueError as error:
        raise UsageError(f"{path} holds no certificate in PEM: {error}") from error


def load_trusted(path: Path) -> ec.EllipticCurvePublicKey | list[Certificate]:
    """A public key, or the certificates in a file.

    Raises:
        UsageError: It cannot be read, is neither, or of a kind that models are not signed with.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UsageError(f"{path} is a private key: give its public part, and keep this where models are signed")
    if b"BEGIN CERTIFICATE" in data:
        return load_certificates(path)
    try:
        key = serialization.load_pem_public_key(data)
    except Exception as error:
        raise UsageError(f"{path} is neither a public key nor a certificate in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise _wrong_kind(path)
    return key


def may_sign(certificate: Certificate) -> bool:
    """Whether a certificate was issued for signing: its usage says digitalSignature, or codeSigning."""
    from cryptography import x509

    for kind, allows in (
        (x509.KeyUsage, lambda usage: usage.digital_signature),
        (x509.ExtendedKeyUsage, lambda usage: x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in usage),
    ):
        try:
            if allows(certificate.extensions.get_extension_for_class(kind).value):
                return True
        except (x509.ExtensionNotFound, ValueError):
            continue
    return False


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """A public key as PEM; the SHA-256 of these bytes is what a signature knows it by."""
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def make_key(path: Path) -> None:
    """Make a private key that only this account can read, and its public part beside it, ending in .pub.

    Raises:
        UsageError: They cannot be written.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        path.with_suffix(".pub").write_bytes(public_pem(key.public_key()))
        partial.replace(path)  # last: what is there has its public part beside it
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _wrong_kind(path: Path) -> UsageError:
    return UsageError(f"{path} is a key of another kind: models are signed with an elliptic one, {_listed()}")


def _listed() -> str:
    *first, last = _CURVES.values()
    return f"{', '.join(first)} or {last}"

"""Keys and certificates for tests of signing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from makel.signing.keys import make_key

needs_signing = pytest.mark.skipif(
    not (find_spec("model_signing") and find_spec("OpenSSL")),
    reason="makel[sign] is not installed: pip install 'model-signing>=1.1,<1.2' pyopenssl",
)
DAY = timedelta(days=1)


def make(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key, as a station makes them."""
    make_key(folder / f"{name}.key")
    return folder / f"{name}.key", folder / f"{name}.pub"


@dataclass
class Certified:
    """A key with its certificate."""

    key: Path
    certificate: Path
    private: ec.EllipticCurvePrivateKey
    name: x509.Name


def certify(folder: Path, name: str, above: Certified | None = None, *, days=(-1, 30), curve=None, sign=True):
    """A certificate, signed by the one above it or by itself."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.name if above else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.BasicConstraints(ca=sign is not True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=sign is True, key_cert_sign=sign is not True, crl_sign=False, **usage),
            critical=True,
        )
        .sign(above.private if above else private, hashes.SHA256())
    )
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate.write_bytes(built.public_bytes(Encoding.PEM))
    return Certified(key, certificate, private, subject)

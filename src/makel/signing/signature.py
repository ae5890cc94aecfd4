"""The signature beside a model folder, and those of the models it came from: read here, believed only by `trust`.

    models/parts/               the model folder, whose files and model_id know nothing of a signature
    models/parts.sig            a Sigstore bundle as `model_signing` writes it, over every file of the folder
    models/parts.origins.jsonl  of a recalibrated model: the signed models before it, nearest first, a line for each

Beside and not within: a folder holds only what its manifest lists, the signature covers the manifest, and an earlier
makel reads the folder as before. What lies in these files is what whoever wrote them says.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from makel.errors import ModelFolderError, SignatureError
from makel.model.folder import ModelFolder, read_bytes
from makel.model.manifest import MANIFEST_NAME, Manifest, read_json

_MOST_BYTES = 2**22
"""Of a signature: one of a folder with a thousand files has a tenth of it."""
_MOST_ORIGINS_BYTES = 2**28
_MOST_ORIGINS = 100

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"


@dataclass(frozen=True)
class Signature:
    """A signature as its file has it.

    Attributes:
        path: The file.
        data: Its bytes.
        signer: Who it says signed, in words.
        hint: SHA-256 of the public key as PEM, 64 hexadecimal digits; "" where a certificate signed.
        certificates: The signing certificate and those above it, DER; none where a key signed.
        files: Name, with forward slashes, and SHA-256 of every file it says it covers.
    """

    path: Path
    data: bytes
    signer: str
    hint: str
    certificates: tuple[bytes, ...]
    files: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """That of a model folder; None where it has none.

        Raises:
            SignatureError: It is cut, damaged or of another kind.
        """
        path = signature_path(folder)
        return cls.from_bytes(_read(path, _MOST_BYTES), path) if path.exists() else None

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Self:
        """Take a signature apart.

        Args:
            data: A Sigstore bundle, JSON.
            path: Where it lies, for messages.

        Raises:
            SignatureError: It is cut, damaged or of another kind.
        """
        try:
            bundle = read_json(data, path)
            material, envelope = bundle["verificationMaterial"], bundle["dsseEnvelope"]
            hint = str((material.get("publicKey") or {}).get("hint") or "")
            chain = (material.get("x509CertificateChain") or {}).get("certificates") or ()
            certificates = tuple(base64.b64decode(each["rawBytes"], validate=True) for each in chain)
            statement = read_json(base64.b64decode(envelope["payload"], validate=True), path)
            if (statement["_type"], statement["predicateType"]) != (_STATEMENT, _PREDICATE):
                raise ValueError(f"it states {statement['predicateType']!r}")
            resources = statement["predicate"]["resources"]
            files = {str(each["name"]): str(each["digest"]) for each in resources}
            if others := {str(each["algorithm"]) for each in resources} - {"sha256"}:
                raise ValueError(f"it hashes files with {min(others)}, where sha256 is needed")
            if len(files) != len(resources) or bool(hint) == bool(certificates):
                raise ValueError("it names a file twice, or not who signed")
        except (ModelFolderError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise damaged(path, error) from error
        signer = name_of_certificate(certificates[0]) if certificates else name_of_key(hint)
        return cls(path, data, signer, hint, certificates, files)

    def check_covers(self, folder: ModelFolder) -> None:
        """Make sure that this says of every file of a model folder what is there, and of no other.

        Raises:
            SignatureError: The folder was signed in another state.
        """
        there = {**folder.manifest.files, MANIFEST_NAME: sha256(folder.manifest.to_bytes()).hexdigest()}
        if self.files == there:
            return
        name = min(set(there.items()) ^ set(self.files.items()))[0]
        what = "was changed after signing" if name in self.files and name in there else "is not what was signed"
        raise SignatureError(
            f"{folder.path / name} {what}: {self.path} is the signature of another state of this folder. Restore the "
            "folder from a good copy, or let it be signed again"
        )


@dataclass(frozen=True)
class Origin:
    """A signed model that another one was recalibrated from.

    Attributes:
        manifest: Its `model.json`.
        signature: Its signature, which covers that file.
    """

    manifest: Manifest
    signature: Signature

    def to_line(self) -> bytes:
        """A line of the file of origins."""
        texts = {"manifest": self.manifest.to_bytes().decode(), "signature": self.signature.data.decode()}
        return json.dumps(texts).encode() + b"\n"


def signature_path(folder: Path) -> Path:
    """Where the signature of a model folder lies."""
    return _beside(folder, "sig")


def origins_path(folder: Path) -> Path:
    """Where the signed models lie that a model folder came from."""
    return _beside(folder, "origins.jsonl")


def read_origins(folder: Path, manifest: Manifest) -> tuple[Origin, ...]:
    """The signed models that a model came from, nearest first: each is the one that the model after it names.

    Args:
        folder: The model folder.
        manifest: Its manifest.

    Raises:
        SignatureError: The file is damaged, or is not of this model.
    """
    path, found = origins_path(folder), list[Origin]()
    if not path.exists():
        return ()
    for line in _read(path, _MOST_ORIGINS_BYTES).splitlines():
        try:
            texts = read_json(line, path)
            before = Manifest.from_bytes(texts["manifest"].encode(), path)
            signature = Signature.from_bytes(texts["signature"].encode(), path)
        except (ModelFolderError, LookupError, TypeError, AttributeError, ValueError) as error:
            raise damaged(path, error) from error
        named = manifest.recalibration.model_id if manifest.recalibration else "no other model"
        digest = sha256(before.to_bytes()).hexdigest()
        if before.model_id != named or signature.files.get(MANIFEST_NAME) != digest or len(found) == _MOST_ORIGINS:
            raise SignatureError(
                f"{path} is not of this model: model {manifest.model_id} came from {named}, and the file tells of "
                f"{before.model_id}. Let it be signed again"
            )
        found.append(Origin(before, signature))
        manifest = before
    return tuple(found)


def write_beside(folder: Path, signature: bytes | None, origins: Sequence[Origin]) -> None:
    """Put a signature beside a model folder, each file whole or not at all; None takes away what is there.

    Raises:
        SignatureError: They cannot be written.
    """
    lines = b"".join(each.to_line() for each in origins) or None
    for path, data in ((origins_path(folder), lines), (signature_path(folder), signature)):
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            if data is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise SignatureError(f"{path} cannot be written: {error.strerror}") from error


def carry(source: ModelFolder, target: Path) -> None:
    """Let a copy of a model folder have the signature of its source, and no other.

    Raises:
        SignatureError: That of the source is damaged, or the target's cannot be written.
    """
    signature = Signature.read(source.path)
    origins = read_origins(source.path, source.manifest) if signature else ()
    write_beside(target, signature.data if signature else None, origins)


def name_of_key(hint: str) -> str:
    """A public key in words: the first 16 digits of what it is known by."""
    return f"key {hint[:16]}"


def name_of_certificate(der: bytes) -> str:
    """A certificate in words: whose it is, where that can be read here, and the first 16 digits of its SHA-256."""
    short = sha256(der).hexdigest()[:16]
    try:
        from cryptography import x509

        return f"certificate {short} ({x509.load_der_x509_certificate(der).subject.rfc4514_string()})"
    except (ImportError, ValueError):  # its digits tell it from any other
        return f"certificate {short}"


def damaged(path: Path, error: BaseException) -> SignatureError:
    """What to say of a signature that cannot be read or does not hold."""
    what = " ".join(f"{type(error).__name__} {error}".split())[:200]
    return SignatureError(
        f"{path} is no sound signature, it was cut or changed ({what}): let the folder be signed again"
    )


def _beside(folder: Path, ending: str) -> Path:
    there = folder.resolve()  # that of what a link leads to, which is the folder that was signed
    return there.with_name(f"{there.name}.{ending}")


def _read(path: Path, most: int) -> bytes:
    try:
        return read_bytes(path, most)
    except ModelFolderError as error:
        raise SignatureError(str(error)) from error


def shown(signature: Signature, origins: Sequence[Origin], folder: ModelFolder) -> list[dict[str, Any]]:
    """The chain as it is written, this model first: `model_id`, `signed_by` and `created` of each. Nothing is checked.

    Raises:
        SignatureError: The folder was signed in another state.
    """
    signature.check_covers(folder)
    links = [(folder.manifest, signature), *((each.manifest, each.signature) for each in origins)]
    return [{"model_id": made.model_id, "signed_by": by.signer, "created": made.created} for made, by in links]

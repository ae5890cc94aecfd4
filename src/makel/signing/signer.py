"""Signing a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from makel.errors import MakelError, SignatureError, UsageError
from makel.model.folder import open_folder
from makel.model.manifest import Manifest
from makel.signing.keys import load_certificates, load_private, may_sign, require
from makel.signing.signature import Origin, Signature, read_origins, signature_path, write_beside


@dataclass(frozen=True)
class Signer:
    """Who signs.

    Attributes:
        key: File of the private key, PEM: elliptic, P-256, P-384 or P-521, without a password.
        certificates: Files of the certificate of this key and of those above it, in this order; none signs as the key.
    """

    key: Path
    certificates: tuple[Path, ...] = ()

    def sign(self, folder: Path, origin: Path | None = None) -> Signature:
        """Sign every file of a model folder; a signature that is there is replaced.

        Args:
            folder: The model folder; nothing in it is touched.
            origin: The signed model that this one was recalibrated from, whose signature is then kept beside as well.

        Returns:
            The signature as it was written.

        Raises:
            MissingExtraError: `makel[sign]` is not installed.
            UsageError: Key or certificate cannot be used, or `origin` is not where this model came from.
            ModelFolderError: The folder was changed, or is none.
            SignatureError: It cannot be written, or `origin` is not signed.
        """
        require("signing a model")
        opened = open_folder(folder)
        origins = _origins(opened.manifest, folder, origin)
        with TemporaryDirectory(prefix="makel-sign-") as scratch:
            written = Path(scratch) / "signature"
            self._write(folder, written, Path(scratch))
            data = written.read_bytes()
        signature = Signature.from_bytes(data, signature_path(folder))
        signature.check_covers(opened)  # hashed again meanwhile: it may have changed
        write_beside(folder, data, origins)
        return signature

    def _write(self, folder: Path, written: Path, scratch: Path) -> None:
        from model_signing import hashing, signing

        key = load_private(self.key)
        config = signing.Config().set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
        )
        if not self.certificates:
            config.use_elliptic_key_signer(private_key=self.key)
        else:
            # model-signing 1.1.1 cannot do with none above: the certificate itself is harmless there.
            chain = self._split(key.public_key(), scratch)
            config.use_certificate_signer(
                private_key=self.key, signing_certificate=chain[0], certificate_chain=chain[1:] or chain
            )
        config.sign(folder.resolve(), written)

    def _split(self, public_key: object, scratch: Path) -> list[Path]:
        """A file for each certificate, that of the key first.

        Raises:
            UsageError: The first one is not of this key, or must not sign.
        """
        from cryptography.hazmat.primitives.serialization import Encoding

        found = [each for path in self.certificates for each in load_certificates(path)]
        if found[0].public_key() != public_key:
            raise UsageError(
                f"{self.certificates[0]} is the certificate of another key than {self.key}: give that of the key "
                "first, then those above it"
            )
        if not may_sign(found[0]):
            raise UsageError(
                f"{self.certificates[0]} is no certificate for signing: let one be issued with the key usage "
                "digitalSignature"
            )
        paths = [scratch / f"{number}.pem" for number in range(len(found))]
        for path, certificate in zip(paths, found, strict=True):
            path.write_bytes(certificate.public_bytes(Encoding.PEM))
        return paths


def _origins(manifest: Manifest, folder: Path, origin: Path | None) -> tuple[Origin, ...]:
    """What is kept of the models before: that of `origin`, or what is there already and belongs to this one."""
    if origin is None:
        try:
            return read_origins(folder, manifest)
        except MakelError:
            return ()
    before = open_folder(origin)
    if manifest.recalibration is None or manifest.recalibration.model_id != before.manifest.model_id:
        raise UsageError(f"{folder} was not recalibrated from {origin}, which is model {before.manifest.model_id}")
    signature = Signature.read(origin)
    if signature is None:
        raise SignatureError(f"{origin} is not signed: sign it first, or leave it out")
    signature.check_covers(before)
    return (Origin(before.manifest, signature), *read_origins(origin, before.manifest))

"""Signed model folders: what a signature covers, whom it is believed, and every way in which it is not."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
import sys
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import tiny_model
from makel.errors import SignatureError, UsageError
from makel.model.folder import open_folder
from makel.signing.signature import Signature, origins_path, signature_path
from makel.signing.signer import Signer
from makel.signing.trust import Trust
from signers import certify, make, needs_signing


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("fitted") / "parts")


@pytest.fixture
def parts(tmp_path, fitted):
    return shutil.copytree(fitted, tmp_path / "parts")


@pytest.fixture
def keys(tmp_path):
    return make(tmp_path, "plant")


def refused(folder, *trusted):
    with pytest.raises(SignatureError) as caught:
        Trust(trusted).check(open_folder(folder))
    said = str(caught.value)
    assert "\n" not in said
    return said


@needs_signing
def test_a_signature_covers_every_file_and_changes_none(parts, keys):
    before = {path: path.read_bytes() for path in parts.rglob("*") if path.is_file()}
    signed = Signer(keys[0]).sign(parts)
    assert signed.path == parts.with_name("parts.sig")
    assert {path: path.read_bytes() for path in parts.rglob("*") if path.is_file()} == before
    assert signed.files == {p.relative_to(parts).as_posix(): sha256(data).hexdigest() for p, data in before.items()}
    link = Trust([keys[1]]).check(open_folder(parts))
    assert (link.trusted_by, link.signed_by) == (keys[1], f"key {sha256(keys[1].read_bytes()).hexdigest()[:16]}")


@needs_signing
def test_the_library_itself_verifies_what_makel_signed_and_the_other_way_round(parts, keys):
    from model_signing import signing, verifying

    Signer(keys[0]).sign(parts)
    verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(parts, signature_path(parts))
    signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(parts, signature_path(parts))
    Trust([keys[1]]).check(open_folder(parts))


@needs_signing
def test_an_unsigned_or_foreign_folder_is_refused(tmp_path, parts, keys):
    assert "parts is not signed: there is no " in refused(parts, keys[1])
    other_key, other = make(tmp_path, "other")
    Signer(other_key).sign(parts)
    said = refused(parts, keys[1])
    assert "which is not trusted; trusted: key " in said
    assert Trust([keys[1], other]).check(open_folder(parts)).trusted_by == other


@needs_signing
def test_a_folder_that_is_another_one_now_is_refused(tmp_path, parts, keys):
    Signer(keys[0]).sign(parts)
    signature = signature_path(parts).read_bytes()
    shutil.rmtree(parts)
    tiny_model.write(parts, image_scores=(0.7, 0.8, 0.9))  # whole in itself, so that only the signature can tell
    assert "model.json was changed after signing" in refused(parts, keys[1])
    with pytest.raises(SignatureError, match="another state of this folder"):
        Signature.from_bytes(signature, signature_path(parts)).check_covers(open_folder(parts))


@needs_signing
def test_a_signature_that_leaves_out_a_file_covers_no_folder(parts, keys):
    from model_signing import hashing, signing

    leaving_out = hashing.Config().set_ignored_paths(paths=[parts / "report.html"])
    config = signing.Config().set_hashing_config(leaving_out).use_elliptic_key_signer(private_key=keys[0])
    config.sign(parts, signature_path(parts))
    assert "report.html is not what was signed" in refused(parts, keys[1])
    config.set_hashing_config(hashing.Config().use_file_serialization(hashing_algorithm="blake3"))
    config.sign(parts, signature_path(parts))
    assert "it hashes files with blake3, where sha256 is needed" in refused(parts, keys[1])


@needs_signing
def test_a_cut_changed_or_made_up_signature_is_refused(parts, keys):
    path = Signer(keys[0]).sign(parts).path
    whole = path.read_bytes()
    bundle = json.loads(whole)
    envelope = bundle["dsseEnvelope"]
    said = base64.b64decode(envelope["payload"])
    name = next(iter(json.loads(said)["predicate"]["resources"]))["name"].encode()
    other = base64.b64encode(said.replace(name, name[::-1])).decode()
    turned = base64.b64encode(base64.b64decode(envelope["signatures"][0]["sig"])[::-1]).decode()
    wrong = [
        whole[:-1],
        whole[: len(whole) // 2],
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"[" * 100_000,
        json.dumps(bundle | {"dsseEnvelope": envelope | {"payload": other}}).encode(),
        json.dumps(bundle | {"dsseEnvelope": envelope | {"payload": ""}}).encode(),
        json.dumps(bundle | {"dsseEnvelope": envelope | {"signatures": []}}).encode(),
        json.dumps(bundle | {"dsseEnvelope": envelope | {"signatures": [{"sig": turned, "keyid": ""}]}}).encode(),
        json.dumps(bundle | {"verificationMaterial": {"publicKey": {}}}).encode(),
    ]
    for data in wrong:
        path.write_bytes(data)
        assert "is no sound signature, it was cut or changed" in refused(parts, keys[1]), data[:60]
    path.unlink()
    path.mkdir()
    assert "cannot be read" in refused(parts, keys[1])


@needs_signing
@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_whoever_stands_above_a_certificate_or_the_certificate_itself_can_be_trusted(tmp_path, parts, curve):
    root = certify(tmp_path, "root", sign=False)
    between = certify(tmp_path, "between", root, sign=False)
    leaf = certify(tmp_path, "leaf", between, curve=curve)
    both = tmp_path / "chain.pem"
    both.write_bytes(leaf.certificate.read_bytes() + between.certificate.read_bytes())
    Signer(leaf.key, (both,)).sign(parts)
    for trusted in (root, between, leaf):
        link = Trust([trusted.certificate]).check(open_folder(parts))
        assert link.trusted_by == trusted.certificate
        assert "CN=leaf" in link.signed_by
    stale = certify(tmp_path, "stale", root, days=(-1, 1))  # the time of one signature is not that of the next
    both_roots = Trust([root.certificate])
    both_roots.check(open_folder(parts))
    Signer(stale.key, (stale.certificate,)).sign(parts)
    both_roots.check(open_folder(parts))
    Signer(leaf.key, (both,)).sign(parts)
    foreign = certify(tmp_path, "foreign", sign=False)
    assert "is not trusted (unable to get local issuer certificate" in refused(parts, foreign.certificate)
    same_name = certify(tmp_path, "root", sign=False)
    assert "is not trusted" in refused(parts, same_name.certificate)


@needs_signing
def test_a_certificate_that_does_not_hold_today_is_refused(tmp_path, parts):
    root = certify(tmp_path, "root", sign=False, days=(-100, 100))
    for days, why in ((-60, -1), "expired"), ((1, 60), "not yet valid"):
        leaf = certify(tmp_path, "leaf", root, days=days)
        Signer(leaf.key, (leaf.certificate,)).sign(parts)
        for trusted in (root, leaf):
            said = refused(parts, trusted.certificate)
            assert "does not hold today: certificate" in said
            assert why in said
    old = certify(tmp_path, "old", sign=False, days=(-100, -1))
    leaf = certify(tmp_path, "leaf", old)
    Signer(leaf.key, (leaf.certificate,)).sign(parts)
    assert "expired" in refused(parts, old.certificate)


@needs_signing
def test_a_certificate_that_is_not_for_signing_or_of_another_key_is_refused(tmp_path, parts, keys):
    root = certify(tmp_path, "root", sign=False)
    with pytest.raises(UsageError, match="is no certificate for signing"):
        Signer(root.key, (root.certificate,)).sign(parts)
    from model_signing import signing

    config = signing.Config().use_certificate_signer(
        private_key=root.key, signing_certificate=root.certificate, certificate_chain=[root.certificate]
    )
    config.sign(parts, signature_path(parts))
    assert "is not trusted (it was not issued for signing)" in refused(parts, root.certificate)
    with pytest.raises(UsageError, match="is the certificate of another key than"):
        Signer(keys[0], (root.certificate,)).sign(parts)


@needs_signing
def test_a_key_that_cannot_be_used_is_said(tmp_path, parts, keys):
    def private(name, key, protection):
        text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        (tmp_path / name).write_bytes(text)
        return tmp_path / name

    plain = serialization.NoEncryption()
    locked = private("locked", ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"x"))
    unfit = private("rsa", rsa.generate_private_key(65537, 2048), plain)
    curve = private("curve", ec.generate_private_key(ec.SECP256K1()), plain)
    for key, why in (
        (locked, "has a password"),
        (unfit, "P-256, P-384 or P-521"),
        (curve, "P-256, P-384 or P-521"),
        (keys[1], "is no private key in PEM"),
        (tmp_path / "absent", "cannot be read: No such file"),
    ):
        with pytest.raises(UsageError, match=why):
            Signer(key).sign(parts)
    for trusted, why in (
        (keys[0], "is a private key"),
        (parts / "model.json", "is neither"),
        (parts, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=why):
            Trust([trusted])
    assert not signature_path(parts).exists()


@needs_signing
def test_the_key_that_a_station_makes_is_for_it_alone(tmp_path):
    key, public = make(tmp_path / "keys", "station")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")


@needs_signing
def test_the_commands_sign_verify_and_tell_the_chain(tmp_path, parts, keys, makel_says):
    line_key, line = make(tmp_path, "line")
    assert makel_says("sign", parts, "--key", keys[0])[0] == 0
    again = tmp_path / "again"
    good = tmp_path / "good"
    good.mkdir()
    for number in range(3):
        (good / f"{number}.png").write_bytes(tiny_picture(number))
    code, _, said = makel_says("recalibrate", parts, good, "--out", again, "--false-reject", "30%", "--quiet")
    assert code == 0, said
    assert "is not signed" in makel_says("verify", again, "--trusted", line)[2]
    assert makel_says("sign", again, "--key", line_key, "--from", parts)[0] == 0
    names = [f"key {sha256(public.read_bytes()).hexdigest()[:16]}" for public in (line, keys[1])]
    before = open_folder(parts).manifest.model_id

    _, out, _ = makel_says("info", again)
    shown = [row for row in out.splitlines() if row.startswith("signed")]
    assert shown[0].startswith(f"signed     by {names[0]}; so it says")
    assert shown[1].startswith(f"signed     from {before} of ")
    assert f"signed by {names[1]}" in shown[1]
    told = json.loads(makel_says("info", again, "--json")[1])["signatures"]
    assert [each["signed_by"] for each in told] == names

    code, out, _ = makel_says("verify", again, "--trusted", line, "--trusted", keys[1], "--json")
    assert code == 0
    assert [each["trusted_by"] for each in json.loads(out)["signatures"]] == [str(line), str(keys[1])]
    code, out, _ = makel_says("verify", again, "--trusted", line)
    assert code == 0
    assert f"came from model {before}, signed by {names[1]}, not trusted: " in out
    code, out, said = makel_says("verify", again, "--trusted", keys[1])
    assert (code, out, said.count("\n")) == (20, "", 1)

    other = tiny_model.write(tmp_path / "other", image_scores=(0.7, 0.8, 0.9))
    assert "was not recalibrated from" in makel_says("sign", again, "--key", line_key, "--from", other)[2]
    lines = origins_path(again).read_text()
    origins_path(again).write_text(lines[:-20])
    assert makel_says("verify", again, "--trusted", line)[0] == 20
    origins_path(other).write_text(lines)
    assert makel_says("sign", other, "--key", line_key)[0] == 0  # what is not of this model is not kept
    assert not origins_path(other).exists()


def tiny_picture(number):
    import cv2
    import numpy as np

    drawn = np.full((40, 40, 3), 128, np.uint8)
    drawn[5 + 8 * number : 12 + 8 * number, 4 : 10 + 9 * number] = 150 + 10 * number
    return cv2.imencode(".png", drawn)[1].tobytes()


def test_without_the_extra_signing_says_so_and_everything_else_runs(parts, keys):
    code = (
        "import sys\n"
        "for name in ('model_signing', 'OpenSSL', 'sigstore'): sys.modules[name] = None\n"
        "import importlib.util as found; seen = found.find_spec\n"
        "found.find_spec = lambda name, *more: None if name in ('model_signing', 'OpenSSL') else seen(name, *more)\n"
        "from makel.cli import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )

    def says(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    wanted = "needs the 'sign' extra, which is not installed: pip install 'makel[sign]'\n"
    assert says("sign", parts, "--key", keys[0]) == (2, f"makel: signing a model {wanted}")
    assert says("verify", parts, "--trusted", keys[1]) == (2, f"makel: checking signatures {wanted}")
    assert says("verify", parts) == (0, "")
    assert says("info", parts) == (0, "")

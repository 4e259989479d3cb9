"""Keys and signatures: what is not signed by a trusted key is refused, each case with its own message."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from engineworks.engines.signing import SIGNING_KEY, TRUSTED_KEYS, Signer, read_signer, read_trust, write_key_pair
from engineworks.errors import InputError, TrustError

DOCUMENT = {"b": [1, 2.5, None], "a": "größer"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    write_key_pair(tmp_path / "keys", "mine")
    write_key_pair(tmp_path / "others", "theirs")
    return tmp_path


def signer(path: Path) -> Signer:
    found = read_signer({SIGNING_KEY: str(path)})
    assert found is not None
    return found


def test_what_was_signed_is_believed_and_says_by_whom(keys: Path) -> None:
    mine = signer(keys / "keys" / "mine.key")
    signed = mine.sign(DOCUMENT)
    for place in (keys / "keys", keys / "keys" / "mine.pub"):
        trust = read_trust({TRUSTED_KEYS: str(place)})
        assert trust.check(signed, "it") == mine.key_id
    assert mine.sign(signed) == signed


def test_without_trusted_keys_nothing_is_asked_for() -> None:
    trust = read_trust({})
    assert not trust.required
    assert trust.check(DOCUMENT, "it") == ""


def test_unsigned_foreign_and_altered_are_refused_each_in_its_own_words(keys: Path) -> None:
    trust = read_trust({TRUSTED_KEYS: str(keys / "keys")})
    foreign = signer(keys / "others" / "theirs.key").sign(DOCUMENT)
    altered = {**signer(keys / "keys" / "mine.key").sign(DOCUMENT), "a": "kleiner"}
    with pytest.raises(TrustError, match=r"^it: is not signed, and ENGINEWORKS_TRUSTED_KEYS asks for a signature"):
        trust.check(DOCUMENT, "it")
    with pytest.raises(TrustError, match=r"^it: is signed by the key [0-9a-f]{16}, which is not trusted here"):
        trust.check(foreign, "it")
    with pytest.raises(TrustError, match=r"^it: was altered"):
        trust.check(altered, "it")


@pytest.mark.parametrize(
    "change", [{"algorithm": "none"}, {"value": "AAAA"}, {"value": "no base64 !"}, {"value": None}]
)
def test_a_signature_that_is_none_is_an_altered_document(keys: Path, change: dict[str, object]) -> None:
    trust = read_trust({TRUSTED_KEYS: str(keys / "keys")})
    signed = signer(keys / "keys" / "mine.key").sign(DOCUMENT)
    with pytest.raises(TrustError, match="was altered"):
        trust.check({**signed, "signature": {**signed["signature"], **change}}, "it")


def test_a_strangers_signature_under_my_keys_name_is_refused(keys: Path) -> None:
    mine, theirs = signer(keys / "keys" / "mine.key"), signer(keys / "others" / "theirs.key")
    forged = theirs.sign(DOCUMENT)
    forged["signature"]["key_id"] = mine.key_id
    with pytest.raises(TrustError, match="was altered"):
        read_trust({TRUSTED_KEYS: str(keys / "keys")}).check(forged, "it")


def test_keys_may_stand_in_the_environment_itself_and_several_in_one_file(keys: Path) -> None:
    mine, theirs = keys / "keys" / "mine", keys / "others" / "theirs"
    both = mine.with_suffix(".pub").read_text() + theirs.with_suffix(".pub").read_text()
    assert len(read_trust({TRUSTED_KEYS: both}).keys) == 2
    (keys / "both.pem").write_text(both)
    assert len(read_trust({TRUSTED_KEYS: str(keys / "both.pem")}).keys) == 2
    assert len(read_trust({TRUSTED_KEYS: f"{mine.parent}:{theirs.with_suffix('.pub')}"}).keys) == 2
    found = read_signer({SIGNING_KEY: mine.with_suffix(".key").read_text()})
    assert found is not None
    assert found.key_id == signer(mine.with_suffix(".key")).key_id


@pytest.mark.parametrize(
    ("content", "message"),
    [("no key at all", "is no unencrypted private key in PEM"), (None, "cannot be read: No such file")],
)
def test_a_signing_key_that_can_not_be_used_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(InputError, match=message):
        read_signer({SIGNING_KEY: str(path)})


def test_trusted_keys_that_name_no_key_are_an_error_not_trust_in_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no public key"):
        read_trust({TRUSTED_KEYS: str(tmp_path)})
    (tmp_path / "a.pem").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(InputError, match="is no public key in PEM"):
        read_trust({TRUSTED_KEYS: str(tmp_path)})


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_keys_that_are_set_but_empty_are_an_error_not_off(text: str) -> None:
    with pytest.raises(InputError, match="ENGINEWORKS_TRUSTED_KEYS is set but empty; name public keys, or unset it"):
        read_trust({TRUSTED_KEYS: text})
    with pytest.raises(InputError, match="ENGINEWORKS_SIGNING_KEY is set but empty; name a key, or unset it"):
        read_signer({SIGNING_KEY: text})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_signing_key_that_others_may_read_is_refused(keys: Path, mode: int) -> None:
    private = keys / "keys" / "mine.key"
    private.chmod(mode)
    try:
        with pytest.raises(InputError, match=rf"may be read by other users \(its mode is {mode:o}\); chmod 600 "):
            read_signer({SIGNING_KEY: str(private)})
    finally:
        private.chmod(0o600)


def test_a_key_of_another_kind_is_told(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with pytest.raises(InputError, match="not an ed25519 key"):
        read_signer({SIGNING_KEY: pem})


def test_a_key_is_secret_and_never_overwritten(keys: Path) -> None:
    private = keys / "keys" / "mine.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    with pytest.raises(InputError, match=r"mine\.key: there is a key already"):
        write_key_pair(keys / "keys", "mine")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_the_documented_openssl_lines_make_a_pair_that_works(tmp_path: Path) -> None:
    private, public = tmp_path / "o.key", tmp_path / "o.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    signed = signer(private).sign(DOCUMENT)
    assert read_trust({TRUSTED_KEYS: str(public)}).check(signed, "it")

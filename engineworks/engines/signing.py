"""Signatures: ed25519 (RFC 8032) by `cryptography`. Keys are PEM (PKCS 8, SPKI), from a path or the environment.

    ENGINEWORKS_SIGNING_KEY    the private key that signs passports and releases: a file of mode 600, or the PEM text
    ENGINEWORKS_TRUSTED_KEYS   trusted public keys: files or folders of *.pem and *.pub, colon-separated, or PEM
                               text; where it is set, Engineworks refuses anything not signed by one of them

A signature covers the canonical JSON of the document (sorted keys, no blanks, UTF-8) without its `signature`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.errors import InputError, TrustError
from engineworks.fingerprint import canonical_json
from engineworks.host.regular_files import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY = "ENGINEWORKS_SIGNING_KEY"
TRUSTED_KEYS = "ENGINEWORKS_TRUSTED_KEYS"
SIGNATURE = "signature"
ALGORITHM = "ed25519"
BEGIN, END = "-----BEGIN ", "-----END "
LARGEST_KEY_BYTES = 2**20


@dataclass(frozen=True)
class Signer:
    """A private key and the id of its public key."""

    key: Ed25519PrivateKey
    key_id: str

    def sign(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document with its signature, which replaces an existing one."""
        value = self.key.sign(_signed_bytes(document))
        signature = {"algorithm": ALGORITHM, "key_id": self.key_id, "value": base64.b64encode(value).decode()}
        return {**document, SIGNATURE: signature}


@dataclass(frozen=True)
class Trust:
    """The trusted public keys, by id. required: whether documents not signed by one of them are refused."""

    keys: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)
    required: bool = False

    def check(self, document: Mapping[str, Any], what: str) -> str:
        """Return the id of the trusted key that signed the document, '' where no key is required.

        Raises `TrustError`: unsigned, signed by an unknown key, or altered since it was signed.
        """
        if not self.required:
            return ""
        signature = document.get(SIGNATURE)
        if not isinstance(signature, Mapping):
            raise TrustError(f"{what}: is not signed, and {TRUSTED_KEYS} asks for a signature", hint=_ASK)
        key = self.keys.get(str(signature.get("key_id")))
        if key is None:
            known = ", ".join(sorted(self.keys))
            raise TrustError(
                f"{what}: is signed by the key {signature.get('key_id')}, which is not trusted here (trusted: {known})",
                hint=_ASK,
            )
        if signature.get("algorithm") != ALGORITHM or not _is_signed_by(key, signature, document):
            raise TrustError(f"{what}: was altered: it is not what was signed", hint="do not use it; fetch it again")
        return str(signature["key_id"])


_ASK = "ask its builder, or add the builder's public key if you trust it"


def read_signer(environ: Mapping[str, str] | None = None) -> Signer | None:
    """Return the signing key, None where ENGINEWORKS_SIGNING_KEY is not set. Raises `InputError` for an unusable
    one."""
    given = (os.environ if environ is None else environ).get(SIGNING_KEY)
    if given is None:
        return None
    if not given.strip():
        raise InputError(f"{SIGNING_KEY} is set but empty", hint="name a key, or unset it to sign nothing")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    is_text = given.lstrip().startswith(BEGIN)
    text = given.encode() if is_text else _read(Path(given).expanduser(), SIGNING_KEY, secret=True)
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: the key is encrypted
        raise InputError(f"{SIGNING_KEY} is no unencrypted private key in PEM", hint=_MAKE) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{SIGNING_KEY} is a {type(key).__name__}, not an ed25519 key", hint=_MAKE)
    return Signer(key, key_id(key.public_key()))


_MAKE = "make a pair with 'engineworks keygen FOLDER'"


def read_trust(environ: Mapping[str, str] | None = None) -> Trust:
    """Return the keys of ENGINEWORKS_TRUSTED_KEYS. Raises `InputError` where it is set but names no key, so that no
    document is trusted by mistake."""
    given = (os.environ if environ is None else environ).get(TRUSTED_KEYS)
    if given is None:
        return Trust()
    if not given.strip():
        raise InputError(f"{TRUSTED_KEYS} is set but empty", hint="name public keys, or unset it to trust everything")
    if find_spec("cryptography") is None:  # a server has what a package's requirements.txt names, and no more
        raise InputError(f"{TRUSTED_KEYS} is set, and cryptography is not installed", hint="pip install cryptography")
    keys = {key_id(key): key for text, where in _key_texts(given) for key in _public_keys(text, where)}
    if not keys:
        raise InputError(f"{TRUSTED_KEYS}={given} names no public key", hint="files or folders of *.pem and *.pub")
    return Trust(keys, required=True)


def write_key_pair(folder: Path, name: str) -> tuple[Path, Path, str]:
    """Write `<name>.key` (private, mode 600) and `<name>.pub`; returns both and the key's id.

    Raises `InputError` if one of them exists: a key is never overwritten.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for path, text, mode in ((private, secret, 0o600), (public, shown, 0o644)):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(text)
    except FileExistsError as error:
        raise InputError(f"{error.filename}: there is a key already", hint="choose another name") from None
    return private, public, key_id(key.public_key())


def key_id(key: Ed25519PublicKey) -> str:
    """Return the first 16 hex digits of the sha256 of the raw public key (32 bytes)."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def _is_signed_by(key: Ed25519PublicKey, signature: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(str(signature.get("value")), validate=True), _signed_bytes(document))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _signed_bytes(document: Mapping[str, Any]) -> bytes:
    return canonical_json({k: v for k, v in document.items() if k != SIGNATURE}).encode()


def _key_texts(given: str) -> Iterator[tuple[bytes, str]]:
    """Yield every PEM text that the variable names, with its location."""
    if given.lstrip().startswith(BEGIN):
        yield given.encode(), TRUSTED_KEYS
        return
    for name in given.split(os.pathsep):
        path = Path(name).expanduser()
        files = sorted([*path.glob("*.pem"), *path.glob("*.pub")]) if os.path.isdir(path) else [path] if name else []  # noqa: PTH112  no name makes it raise
        for file in files:
            yield _read(file, TRUSTED_KEYS), str(file)


def _public_keys(text: bytes, where: str) -> Iterator[Ed25519PublicKey]:
    """Yield the keys of a file, which may hold several."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for block in text.decode(errors="replace").split(BEGIN)[1:]:
        try:
            key = serialization.load_pem_public_key((BEGIN + block).encode())
        except (ValueError, UnsupportedAlgorithm):
            raise InputError(f"{where}: is no public key in PEM", hint=_MAKE) from None
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{where}: is a {type(key).__name__}, not an ed25519 key", hint=_MAKE)
        yield key


def _read(path: Path, variable: str, *, secret: bool = False) -> bytes:
    """Read a key. secret: refuse a file that its group or others may read."""
    try:
        with open_regular(path) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if secret and mode & 0o077:
                raise InputError(
                    f"{variable}: {path} may be read by other users (its mode is {mode:03o})",
                    hint=f"chmod 600 {path}; if others have read it, make a new key",
                )
            return file.read(LARGEST_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{variable}: {path} cannot be read: {error.strerror}") from None

"""The sites' identities, and the keys that pairs of sites share.

Ed25519 (RFC 8032) signs, X25519 (RFC 7748) agrees on a secret, HKDF-SHA256 (RFC 5869) derives keys
from it, and AES-256-GCM (NIST SP 800-38D) seals; all from `cryptography`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedsight.core.errors import DeployError

PUBLIC = 32  # bytes of a public key
SIGNATURE = 64  # bytes
NONCE, TAG = 12, 16  # bytes
CHALLENGE = 32  # bytes
_HEX = re.compile(r"[0-9a-f]{64}")  # as `bytes.hex` writes 32 bytes


class Identity:
    """A site's Ed25519 key, which stays at the site; the others know its `public` key."""

    def __init__(self, private: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def fresh(cls) -> Identity:
        """A new identity that exists only in memory."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def at(cls, path: Path) -> Identity:
        """The identity in the file at `path`, which is created if it does not exist.

        Raises DeployError if users other than the owner may access the file, or if it does not
        contain a key.
        """
        try:
            if not path.exists():
                # Owner-only from the start, and never over an existing key.
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(file, "wb") as out:
                    out.write(secrets.token_bytes(32))
                    out.flush()
                    os.fsync(out.fileno())
            mode = stat.S_IMODE(path.stat().st_mode)
            private = path.read_bytes()
        except OSError as error:
            cause = f"the key file {path} cannot be used: {error.strerror}"
            raise DeployError(cause, "check the owner and the permissions of the folder") from error
        if mode & 0o077:
            raise DeployError(
                f"the key file {path} has mode {mode:04o}: other users may access it",
                f"chmod 600 {path.name}; if others had access, create a new identity instead",
            )
        if len(private) != 32:
            cause = f"the key file {path} has {len(private)} bytes; a key has 32"
            raise DeployError(cause, "restore it from a backup, or create a new identity")
        return cls(private)

    def sign(self, message: bytes) -> bytes:
        """The signature of `message`: 64 bytes."""
        return self._key.sign(message)


def is_public(key: object) -> TypeGuard[str]:
    """Whether `key` is a public key in hex, in the only form that is accepted.

    `bytes.fromhex` ignores spaces, so one key would have many forms, and two sites could have it.
    """
    return isinstance(key, str) and _HEX.fullmatch(key) is not None


def is_challenge(value: object) -> bool:
    """Whether `value` is a challenge in hex, to which `identity_part` belongs."""
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def identity_part(site: str, challenge: bytes) -> bytes:
    """What `site` signs to prove that it holds its identity key: fresh bytes and its name."""
    return b"fedsight identity\0" + challenge + site.encode()


@lru_cache(maxsize=1 << 14)  # on one machine, all neighbours of a site check the same signature
def signed(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the owner of `public` signed `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class KeyPair:
    """An X25519 key, `private` and `public`."""

    def __init__(self, private: bytes) -> None:
        self.private = private
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def fresh(cls) -> KeyPair:
        """A new one."""
        return cls(secrets.token_bytes(32))

    def agree(self, public: bytes) -> bytes:
        """The secret shared with the owner of another `public` key: 32 bytes.

        Raises ValueError for a point of small order, whose secret would be known to everybody.
        """
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


@lru_cache(maxsize=1 << 14)  # as for `signed`
def is_usable(public: bytes) -> bool:
    """Whether an X25519 key is no point of small order, with which nobody could agree."""
    try:
        _ANYONE.agree(public)
    except ValueError:
        return False
    return True


_ANYONE = KeyPair(bytes(range(32)))


def derive(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    """A key derived by HKDF-SHA256, of `length` bytes."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


def seal(key: bytes, message: bytes, context: bytes) -> bytes:
    """AES-256-GCM: nonce, ciphertext and tag; `context` is authenticated too."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, message, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes | None:
    """The sealed message; None if it or the context was altered."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], context)
    except (InvalidTag, ValueError):
        return None

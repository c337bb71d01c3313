"""The key and the certificate of a federation's authority, made without FLARE's tools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fedsight.deploy.membership.kits import AUTHORITY, AUTHORITY_KEY


@cache
def authority(name: str) -> tuple[bytes, bytes]:
    """Certificate and key, as PEM."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, now, now + timedelta(1))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), private


def give(folder: Path, name: str = "wards") -> None:
    """Write the authority's key and certificate to the folder `ca` of a federation."""
    certificate, key = authority(name)
    (folder / "ca").mkdir(exist_ok=True)
    (folder / "ca" / AUTHORITY).write_bytes(certificate)
    (folder / "ca" / AUTHORITY_KEY).write_bytes(key)


def show(home: Path, name: str = "wards") -> Path:
    """Write the authority's certificate to the kit of a site; returns where it is."""
    path = home / "kit" / "startup" / AUTHORITY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(authority(name)[0])
    return path


def certificate_of_itself(folder: Path, name: str) -> Path:
    """A certificate of `name` that vouches for itself, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        subject, subject, key.public_key(), 1, now - timedelta(1), now + timedelta(1)
    ).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = folder / f"{name}.pem"
    signed = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path.write_bytes(private + signed)
    return path

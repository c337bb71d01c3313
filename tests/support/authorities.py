"""The key and the certificate of a federation's authority, made without FLARE's tools."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from fedsight.deploy.membership.kits import AUTHORITY, AUTHORITY_KEY

TOTAL_DAYS = 1000  # for which an authority's certificate is valid


@cache
def authority(name: str) -> tuple[bytes, bytes]:
    """Certificate and key, as PEM."""
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    begin, end = now - timedelta(1), now + timedelta(TOTAL_DAYS)
    made = x509.CertificateBuilder(subject, subject, key.public_key(), 1, begin, end)
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


@cache
def _member_key(name: str) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def certify(name: str, role: str, days: float = 100, **other: Any) -> bytes:
    """A member's certificate in PEM, with the key that belongs to the name.

    `other`: another `key` (that of this name), `by` another authority, `begins` in days from now,
    or a certificate that may itself sign (`ca`).
    """
    signer = serialization.load_pem_private_key(authority(other.get("by", "wards"))[1], None)
    assert isinstance(signer, rsa.RSAPrivateKey)
    key = _member_key(other.get("key", name)).public_key()
    parts = (NameOID.COMMON_NAME, name), (NameOID.UNSTRUCTURED_NAME, role)
    subject = x509.Name([x509.NameAttribute(*part) for part in parts])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, other.get("by", "wards"))])
    now = datetime.now(UTC).replace(microsecond=0)
    begin, end = now + timedelta(other.get("begins", -0.5)), now + timedelta(days)
    builder = x509.CertificateBuilder(
        issuer, subject, key, x509.random_serial_number(), begin, end
    ).add_extension(x509.BasicConstraints(other.get("ca", False), None), True)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def give_kit(home: Path, name: str, role: str = "client", days: float = 100) -> Path:
    """Make a member's kit of certificates and key in `home`; returns its folder `startup`."""
    startup = show(home).parent
    key = _member_key(name).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (startup / "client.key").write_bytes(key)
    (startup / "client.key").chmod(0o600)
    (startup / "client.crt").write_bytes(certify(name, role, days))
    return startup


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

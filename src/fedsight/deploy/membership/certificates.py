"""Certificates of a federation: how long they are valid, and their renewal for the same key."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import NameOID

from fedsight.core import locks
from fedsight.core.errors import DeployError
from fedsight.core.files import write_atomically
from fedsight.deploy.membership import kits

CERTIFICATE_DAYS = 825  # how long a certificate is valid by default
SOON = 30  # days before the end of a certificate that it is warned of
AUTHORITY_SOON = 365  # the same of the authority's: then every member has to join anew
MAX_BYTES = 16 << 10  # of a certificate in PEM; one of ours has about 1,250
CLOCK_DIFFERENCE = timedelta(hours=1)  # a renewed certificate begins so much earlier
LOCK_TIMEOUT = 10.0  # seconds to wait for another process that renews the same certificate
_ROLE = NameOID.UNSTRUCTURED_NAME  # where FLARE looks for the role
# What reading a certificate that somebody made up may raise.
_READ_ERRORS = (
    *(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, OverflowError),
    *(x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion),
)


def read(path: Path) -> x509.Certificate:
    """The certificate in a file; DeployError if it cannot be read."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        cause = f"the certificate {path} cannot be read: {error}"
        raise DeployError(cause, "restore the file from a backup") from None


def name_of(certificate: x509.Certificate) -> str:
    """Whose certificate it is; empty if it does not say."""
    return _attribute(certificate, NameOID.COMMON_NAME)


def role_of(certificate: x509.Certificate) -> str:
    """The role that the authority has certified, such as `client` or `lead`; empty without one."""
    return _attribute(certificate, _ROLE)


def days_left(certificate: x509.Certificate) -> int:
    """For how many more whole days it is valid; negative if it has expired."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).days


def check_days(authority: Path, days: int) -> None:
    """Raise DeployError if a certificate for so many days would outlive that of the authority,
    which is in the file `authority`."""
    found = read(authority)
    left, end = days_left(found), found.not_valid_after_utc.date()
    if days <= left:
        return
    if left < 1:
        raise DeployError(
            f"the authority's certificate ended on {end}, and no other can be valid for longer",
            "create a new federation; its members join it as they joined this one",
        )
    raise DeployError(
        f"a certificate for {days:,} days would outlive the authority's, which ends on {end}",
        f"use --days {left}, and have a new federation ready before that day",
    )


def renewed(old: x509.Certificate, ca: Path, days: int) -> bytes:
    """A certificate like `old`, for the same key, name and role, that ends `days` from now.

    `ca` is the authority's folder, with its key. Raises DeployError if the key is not there, if
    `old` is not the authority's, or if the new one would outlive it.
    """
    key = _authority_key(ca / kits.AUTHORITY_KEY)
    authority = read(ca / kits.AUTHORITY)
    check_days(ca / kits.AUTHORITY, days)
    if not _is_issued(old, authority):
        cause = f"the certificate of '{name_of(old)}' is not one of this federation's authority"
        raise DeployError(cause, "restore the federation's folder from a backup")
    now = datetime.now(UTC).replace(microsecond=0)
    builder = x509.CertificateBuilder(
        issuer_name=authority.subject,
        subject_name=old.subject,
        public_key=old.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=max(now - CLOCK_DIFFERENCE, authority.not_valid_before_utc),
        not_valid_after=min(now + timedelta(days=days), authority.not_valid_after_utc),
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ends_later(data: bytes, held: x509.Certificate) -> bool:
    """Whether a certificate in PEM ends later than another one; False if it cannot be read."""
    try:
        found = x509.load_pem_x509_certificate(data)
        return found.not_valid_after_utc > held.not_valid_after_utc
    except _READ_ERRORS:
        return False


def take(startup: Path, data: bytes) -> bool:
    """Replace `client.crt` in the folder `startup` of a kit by its renewal `data`, in PEM.

    Returns False if it is there already. Raises DeployError, and changes nothing, unless `data` is
    what `renewed` makes of it: signed by the authority that this machine knows, for its own key,
    with the same name, role and extensions, valid now, and for longer.
    """
    path = startup / "client.crt"
    busy = DeployError(f"another process is renewing {path}", "try again")
    with locks.hold(startup.parent / ".renewal.lock", LOCK_TIMEOUT, busy):
        held = read(path)
        if len(data) > MAX_BYTES:
            raise _refused(f"it has more than {MAX_BYTES:,} bytes")
        try:
            found = x509.load_pem_x509_certificate(data)
            same = found == held
            if not same:
                _check(found, held, startup)
        except _ForeignError as error:
            raise _refused(str(error)) from None
        except _READ_ERRORS as error:
            raise _refused(f"it cannot be read ({type(error).__name__})") from None
        if not same:
            # Written anew from what was checked: behind the certificate anything could follow.
            write_atomically(path, found.public_bytes(serialization.Encoding.PEM))
    return not same


class _ForeignError(ValueError):
    """A certificate is not the renewal of the one that is held."""


def _check(found: x509.Certificate, held: x509.Certificate, startup: Path) -> None:
    """Raise _ForeignError unless a certificate is the renewal of the one that is held."""
    authority = read(startup / kits.AUTHORITY)
    if not _is_issued(found, authority):
        raise _ForeignError("this federation's authority has not signed it")
    if _public(found.public_key()) != _public(_own_key(startup / "client.key").public_key()):
        raise _ForeignError("it is for another key")
    if found.subject != held.subject:
        raise _ForeignError(f"it is for '{name_of(found)}' in the role '{role_of(found)}'")
    if list(found.extensions) != list(held.extensions):
        raise _ForeignError("it is for another use")
    if (begin := found.not_valid_before_utc) > datetime.now(UTC):
        raise _ForeignError(f"it is valid only from {begin:%Y-%m-%d %H:%M} on")
    if found.not_valid_after_utc <= held.not_valid_after_utc:
        raise _ForeignError("it ends no later than the one that is here")
    if found.not_valid_after_utc > authority.not_valid_after_utc:
        raise _ForeignError("it would outlive the authority's")


def _refused(why: str) -> DeployError:
    cause = f"this is not a renewal of the certificate here: {why}"
    return DeployError(cause, "ask the operator for the file that `fedsight federation renew` made")


def _is_issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except _READ_ERRORS:
        return False
    return True


def _attribute(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    values = [str(one.value) for one in certificate.subject.get_attributes_for_oid(oid)]
    return values[0] if len(values) == 1 else ""


def _public(key: object) -> bytes:
    der, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(der, form)  # type: ignore[attr-defined, no-any-return]


def _authority_key(path: Path) -> RSAPrivateKey:
    cure = "put the authority's key there for a moment, from where you keep it"
    return _key(path, f"the authority's key {path}", cure)


def _own_key(path: Path) -> RSAPrivateKey:
    return _key(path, f"the private key {path}", "restore the kit from a backup, or join again")


def _key(path: Path, what: str, cure: str) -> RSAPrivateKey:
    try:
        found = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(found, RSAPrivateKey):
            raise ValueError("it is not an RSA key")
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeployError(f"{what} cannot be read: {error}", cure) from None
    return found

"""The certificate with which a console proves to browsers that it is the one of its name."""

from __future__ import annotations

import ipaddress
import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from fedsight.core.errors import StoreError
from fedsight.core.files import refuse_readable

GLANCE = 1.0  # seconds for which the files are not looked at again
CURE = "give a certificate and its key in PEM with --certificate and --key"
log = logging.getLogger(__name__)


class Certificate:
    """A certificate and its key, in two files in PEM. Renewed ones are taken over at once."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises StoreError for files that cannot be used, or a certificate that has ended;
        DeployError for a key that others may read."""
        self.path, self._key = certificate, key
        self._seen = self._stamp()
        self._until = time.monotonic() + GLANCE
        self._context, found = self._load()
        self.names = _names(found)
        self.fingerprint = found.fingerprint(hashes.SHA256()).hex(":").upper()
        if not self.names:
            cause = f"the certificate {certificate} names no machine"
            raise StoreError(cause, "get one with a subject alternative name")

    def covers(self, host: str) -> bool:
        """Whether browsers take it for a host."""
        host = _plain(host)
        return any(one == host or _is_below(host, one) for one in self.names)

    @property
    def context(self) -> ssl.SSLContext:
        """What connections are made with now."""
        if (now := time.monotonic()) >= self._until:
            self._until = now + GLANCE
            if (seen := self._stamp()) != self._seen:
                self._seen = seen
                try:
                    self._context, found = self._load()
                    self.names = _names(found)
                except Exception as error:  # half written, or not its key yet
                    log.warning("the earlier certificate is still used: %s", error)
        return self._context

    def _stamp(self) -> tuple[object, ...]:
        try:
            stats = [path.stat() for path in (self.path, self._key)]
        except OSError:
            return ()
        return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)

    def _load(self) -> tuple[ssl.SSLContext, x509.Certificate]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        try:
            refuse_readable(self._key, "the key of the console's certificate")
            found = x509.load_pem_x509_certificate(self.path.read_bytes())
            context.load_cert_chain(self.path, self._key, password=lambda: b"")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            cause = f"{self.path} with the key {self._key} cannot be used: {why}"
            raise StoreError(cause, f"{CURE}; the key has no passphrase") from None
        if (end := found.not_valid_after_utc) <= datetime.now(UTC):
            cause = f"the certificate {self.path} ended on {end.date()}"
            raise StoreError(cause, "renew it")
        return context, found


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses that it is for; not the common name, which browsers ignore."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    names = found.get_values_for_type(x509.DNSName)
    addresses = found.get_values_for_type(x509.IPAddress)
    return (*map(_plain, names), *map(str, addresses))


def _plain(host: str) -> str:
    """A host in one form: in small letters, without a dot at its end, addresses in their shortest
    form."""
    host = host.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host


def _is_below(host: str, pattern: str) -> bool:
    """Whether `*.example.org` stands for the host: for one label, as in RFC 6125."""
    first, dot, rest = host.partition(".")
    return bool(first and dot) and pattern == f"*.{rest}"

"""What `fedsight site doctor` and `fedsight federation doctor` look at, before the first run."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedsight.cli.doctor import Finding
from fedsight.core.errors import ConfigError, FedSightError
from fedsight.core.files import json_object, refuse_readable
from fedsight.deploy.membership import hosts, kits, overview, presence
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.package import installed, stated
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server.server import RUNNING
from fedsight.deploy.site import state
from fedsight.deploy.site.folder import SiteFolder, open_images
from fedsight.deploy.site.owner import read_owner, tables
from fedsight.governance.ledger import CLOCK_TOLERANCE, Ledger
from fedsight.language.english import from_english
from fedsight.language.message import Text, message
from fedsight.runs.progress import size

CONNECT_TIMEOUT = 5.0  # seconds
VERDICT_TIMEOUT = 2.0  # seconds for the server to refuse this side's certificate
VERDICT_STEP = 0.05  # seconds
LEAST_DISK = 1 << 30  # bytes
SOON = 30  # days before a certificate expires


def site_findings(site: SiteFolder, program: Path | None) -> Iterator[Finding]:
    """Everything that is looked at for a site, in the order in which it is shown."""
    yield from _software()
    yield from _tried(message("keys"), lambda: kits.check_keys_private(site.folder))
    yield from _ledger(site.folder)
    startup = site.kit / "startup"
    if startup.is_dir():
        yield from _certificate(message("certificate"), startup / "client.crt")
        yield from _server(site.invitation, startup)
    else:
        cure = message("send {name}.request.zip to the operator", name=site.name)
        yield Finding(message("admission"), "bad", message("not admitted yet"), cure)
    yield _disk(site.folder)
    yield from _running_site(site)
    yield from _owner(site, program)


def federation_findings(federation: FederationFolder) -> Iterator[Finding]:
    """Everything that is looked at for a federation, in the order in which it is shown."""
    yield from _software()
    yield from _tried(message("keys"), lambda: kits.check_keys_private(federation.folder))
    yield from _authority(federation)
    server, operator = (one / "startup" for one in (_kit(federation), federation.operator_kit))
    yield from _certificate(message("server's certificate"), server / "server.crt")
    yield from _certificate(message("operator's certificate"), operator / "client.crt")
    yield _disk(federation.folder)
    yield from _running_server(federation)
    if supervisor.is_running(federation.server_home):
        yield from _server(federation.invitation, operator)
    yield from _members(federation)


def _kit(federation: FederationFolder) -> Path:
    return federation.server_home / "kit"


def _software() -> Iterator[Finding]:
    """The FedSight code with its whole hash, which contracts can pin, and the engine."""
    ours = installed()
    yield Finding("FedSight", "ok", f"{ours.version}, SHA-256 {ours.sha256}")
    if find_spec("nvflare") is None:
        cure = "pip install 'fedsight[deploy]'"
        yield Finding("NVIDIA FLARE", "bad", message("missing"), cure)
    else:
        yield Finding("NVIDIA FLARE", "ok", message("installed"))


def _tried(what: Text, check: Callable[[], object]) -> Iterator[Finding]:
    """Whether a check raises an error, and which."""
    try:
        check()
    except FedSightError as error:
        yield _fault(what, error)
    else:
        yield Finding(what, "ok", message("as they must be"))


def _fault(what: Text, error: FedSightError) -> Finding:
    """An error as a finding: of a faulty config, the first problem."""
    if isinstance(error, ConfigError):
        first = error.problems[0]
        return Finding(what, "bad", f"{first.where}: {from_english(first.cause)}", first.cure)
    return Finding(what, "bad", from_english(error.cause), from_english(error.cure))


def _ledger(home: Path) -> Iterator[Finding]:
    """Whether the ledger is intact and private, and the clock not behind its last entry."""
    what = message("ledger")
    if not (home / "ledger.sqlite").exists():
        yield Finding(what, "ok", message("none yet"))
        return
    try:
        refuse_readable(home / "ledger.sqlite", "the ledger")
        number, _ = Ledger(home).head
        entries = Ledger(home).entries()
    except FedSightError as error:
        yield _fault(what, error)
        return
    yield Finding(what, "ok", message("intact, {n:,} entries", n=number))
    if entries and datetime.now(UTC) < entries[-1].written_at - CLOCK_TOLERANCE:
        last = entries[-1].written_at.isoformat(timespec="minutes")
        value = message("behind the ledger's last entry ({time})", time=last)
        yield Finding(message("clock"), "bad", value, message("correct the clock"))


def _certificate(what: Text, path: Path) -> Iterator[Finding]:
    """How long a certificate is valid; before it is, the clock is wrong."""
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        why = message("{file} cannot be read: {error}", file=path.name, error=error)
        yield Finding(what, "bad", why, message("restore the file from a backup"))
        return
    now, begins, ends = datetime.now(UTC), found.not_valid_before_utc, found.not_valid_after_utc
    if now < begins:
        value = message("behind: the certificate is valid from {time} on", time=begins.date())
        yield Finding(message("clock"), "bad", value, message("correct the clock"))
        return
    days = (ends - now).days
    if now > ends:
        value, cure = message("expired on {time}", time=ends.date()), _renew()
        yield Finding(what, "bad", value, cure)
    else:
        value = message("valid for {n:,} more days", n=days)
        soon = days < SOON
        yield Finding(what, "note" if soon else "ok", value, _renew() if soon else "")


def _renew() -> Text:
    return message("see Certificates in docs/how-to/deploy-a-federation.md")


def _server(invitation: Invitation, startup: Path) -> Iterator[Finding]:
    """Whether the server's name resolves, its port answers, and both sides' certificates fit."""
    host, port = invitation.host, invitation.port
    what = message("network")
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT) as plain:
            address = plain.getpeername()[0]
            said = {"server": hosts.written(host, port), "address": address}
            yield Finding(what, "ok", message("{server} answers ({address})", **said))
            yield _tls(plain, host, startup)
    except socket.gaierror:
        value = message("the name {host} does not resolve", host=host)
        yield Finding(what, "bad", value, message("add it to the DNS or to /etc/hosts"))
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        server = hosts.written(host, port)
        value = message("{server} does not answer: {why}", server=server, why=why)
        cure = message("start the server, and open the port in the firewalls on the way")
        yield Finding(what, "bad", value, cure)


def _tls(plain: socket.socket, host: str, startup: Path) -> Finding:
    """Whether both ends accept each other's certificates; the server's names its host."""
    what = "TLS"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the engine compares the name in the subject, as below
    try:
        context.load_verify_locations(startup / kits.AUTHORITY)
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
        with context.wrap_socket(plain, server_hostname=host) as secured:
            certificate = secured.getpeercert(binary_form=True) or b""
            _await_verdict(secured)
    except (OSError, ssl.SSLError) as error:
        value = message("refused: {error}", error=error)
        cure = message("a proxy that opens TLS, another federation, or an expired certificate")
        return Finding(what, "bad", value, cure)
    subject = x509.load_der_x509_certificate(certificate).subject
    names = [str(one.value) for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if hosts.engine_name(host) not in names:
        value = message("the server's certificate is for {names}", names=", ".join(names))
        return Finding(what, "bad", value, message("ask the operator for the invitation again"))
    return Finding(what, "ok", message("both ends accept each other"))


def _await_verdict(secured: ssl.SSLSocket) -> None:
    """Wait until the server has looked at this side's certificate.

    In TLS 1.3 (RFC 8446, section 4.4) the handshake is over for the client before that. A server
    that refuses then sends an alert, or closes the connection; one that accepts sends tickets
    (section 4.6.1), or says nothing. Raises OSError if the server refuses.
    """
    secured.settimeout(VERDICT_STEP)
    end = time.monotonic() + VERDICT_TIMEOUT
    while time.monotonic() < end:
        if secured.session is not None and secured.session.has_ticket:
            return
        try:
            if secured.recv(1):
                return
        except TimeoutError:
            continue
        raise ConnectionError("the server closed the connection")


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    few = free < LEAST_DISK
    cure = message("free some space; a run needs some times the size of its model")
    return Finding(message("free disk"), "note" if few else "ok", size(free), cure if few else "")


def _running_site(site: SiteFolder) -> Iterator[Finding]:
    what = message("site")
    if not supervisor.is_running(site.folder):
        yield Finding(what, "note", message("not running"), "fedsight site start")
        return
    said = state.state_of(site.folder)
    if said == "stopped":
        cure = message("let it go on (kill -CONT), or end it")
        yield Finding(what, "bad", message("its trainer process is stopped"), cure)
    elif said == "drained":
        yield Finding(what, "note", message("drained"), "fedsight site drain --end")
    elif presence.is_answered(site.folder):
        yield Finding(what, "ok", message("running, and the server answers"))
    else:
        cure = message("see network and TLS above; the site may have been revoked")
        yield Finding(what, "bad", message("running, but the server does not answer"), cure)


def _owner(site: SiteFolder, program: Path | None) -> Iterator[Finding]:
    """The owner's settings and images, and whether they permit a program."""
    try:
        settings, changed = _settings(site.folder)
        owner = read_owner(site.folder / settings, None)
    except ConfigError as error:
        yield _fault(message("settings"), error)
        return
    if changed:
        value = message("the site was started with others than site.toml has now")
        yield Finding(message("settings"), "note", value, message("start the site again"))
    else:
        yield Finding(message("settings"), "ok", message("as they must be"))
    try:
        facts = open_images(owner)
    except FedSightError as error:
        yield _fault(message("images"), error)
        return
    classes: Sequence[str] = facts["classes"]
    value = message(
        "{train:,} for training, {test:,} for testing; classes: {names}",
        train=facts["train"], test=facts["test"], names=", ".join(classes[:10]),
    )  # fmt: skip
    yield Finding(message("images"), "ok", value)
    if program is not None:
        yield from _program(site, settings, program)


def _settings(folder: Path) -> tuple[str, bool]:
    """The file with the settings that hold, and whether site.toml has others by now.

    A site that runs goes by what it was started with. So does one whose site.toml names no images:
    they were named at the start. Raises ConfigError if site.toml has any other problem.
    """
    own, started = folder / "site.toml", folder / "owner.toml"
    try:
        owner = read_owner(own, None)
    except ConfigError as error:
        if not started.exists() or any(one.where != "data" for one in error.problems):
            raise
        return started.name, False
    if not started.exists() or not supervisor.is_running(folder):
        return own.name, False
    return started.name, tables(read_owner(started, None)) != tables(owner)


def _program(site: SiteFolder, settings: str, path: Path) -> Iterator[Finding]:
    from fedsight.cli.doctor_program import permission  # brings torch

    try:
        yield from permission(site, settings, path)
    except FedSightError as error:
        yield _fault(message("program"), error)


def _authority(federation: FederationFolder) -> Iterator[Finding]:
    """The authority's certificate and key, and whether the list of revoked sites is signed."""
    ca = federation.folder / "ca"
    yield from _certificate(message("authority's certificate"), ca / kits.AUTHORITY)
    if not (ca / kits.AUTHORITY_KEY).exists():
        cure = message("needed to admit sites and to sign revocations; restore the folder `ca`")
        yield Finding(message("authority's key"), "note", message("not on this machine"), cure)
    if not federation.lists_revoked:
        cure = message("revoke a site again, with the authority's key in place")
        value = message("revoked sites are missing from the signed list")
        yield Finding(message("revocations"), "note", value, cure)


def _running_server(federation: FederationFolder) -> Iterator[Finding]:
    what, home = message("server"), federation.server_home
    if not supervisor.is_running(home):
        yield Finding(what, "bad", message("not running"), "fedsight server start")
        return
    runs = stated(json_object(home / RUNNING))
    if runs != installed():
        value = message("was started with FedSight {other}", other=str(runs))
        yield Finding(what, "bad", value, message("start it again"))
    else:
        yield Finding(what, "ok", message("running"))


def _members(federation: FederationFolder) -> Iterator[Finding]:
    """Each admitted site: whether it is connected, with which code, and which classes it has."""
    rows = [row for row in overview.sites(federation).rows if not row.revoked]
    if not rows:
        none = message("none has been admitted yet")
        yield Finding(message("sites"), "bad", none, "fedsight federation admit")
    found = presence.presences(federation.presences)
    classes: dict[tuple[str, ...], str] = {}
    for row in rows:
        what = message("site {name}", name=row.name)
        yield _member(what, row)
        declared = found[row.name].declared if row.name in found else None
        names = (declared or {}).get("classes")
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            classes.setdefault(tuple(names), row.name)
    if len(classes) > 1:
        first, second = list(classes.values())[:2]
        value = message("'{one}' and '{other}' have different ones", one=first, other=second)
        order = message("list all of them, in order, in data.classes of the program")
        yield Finding(message("class names"), "note", value, order)


def _member(what: Text, row: overview.SiteRow) -> Finding:
    if not row.connected:
        absent = message("never connected") if row.since is None else message("not connected")
        return Finding(what, "note", absent, message("ask its owner to start it"))
    if row.other:
        value = message("runs FedSight {other}", other=row.package)
        return Finding(what, "bad", value, message("install the same version there"))
    if row.state == "stopped":
        cure = message("ask its owner")
        return Finding(what, "bad", message("its trainer process is stopped"), cure)
    if row.state == "drained":
        return Finding(what, "note", message("drained by its owner"))
    return Finding(what, "ok", message("connected"))

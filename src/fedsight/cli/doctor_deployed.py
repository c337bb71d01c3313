"""What `fedsight site doctor` and `fedsight federation doctor` look at, before the first run."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID

from fedsight.core.errors import ConfigError, FedSightError
from fedsight.core.files import json_object
from fedsight.core.finding import Finding
from fedsight.core.package import RUNNING, installed, stated
from fedsight.deploy.findings import (
    certificate,
    disk,
    fault,
    ledger,
    running_site,
    settings_in_force,
    site_certificate,
    tried,
)
from fedsight.deploy.membership import hosts, kits, overview, presence
from fedsight.deploy.membership.certificates import AUTHORITY_SOON, SOON, days_left, read
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder, Invitation
from fedsight.deploy.membership.renewal import certified
from fedsight.deploy.monitoring.settings import check
from fedsight.deploy.processes import supervisor
from fedsight.deploy.server.settings import read_server
from fedsight.deploy.site.folder import SiteFolder
from fedsight.deploy.site.opening import open_images
from fedsight.deploy.site.owner import read_owner
from fedsight.language.message import Text, message

CONNECT_TIMEOUT = 5.0  # seconds
VERDICT_TIMEOUT = 2.0  # seconds for the server to refuse this side's certificate
VERDICT_STEP = 0.05  # seconds


def site_findings(site: SiteFolder, program: Path | None) -> Iterator[Finding]:
    """Everything that is looked at for a site, in the order in which it is shown."""
    yield from _software()
    yield from tried(message("keys"), lambda: kits.check_keys_private(site.folder))
    yield from ledger(site.folder)
    startup = site.kit / "startup"
    if startup.is_dir():
        yield from site_certificate(site)
        yield from _server(site.invitation, startup)
    else:
        cure = message("send {name}.request.zip to the operator", name=site.name)
        yield Finding(message("admission"), "bad", message("not admitted yet"), cure)
    yield disk(site.folder)
    yield from running_site(site)
    yield from _owner(site, program)


def federation_findings(federation: FederationFolder) -> Iterator[Finding]:
    """Everything that is looked at for a federation, in the order in which it is shown."""
    yield from _software()
    yield from tried(message("keys"), lambda: kits.check_keys_private(federation.folder))
    yield from _authority(federation)
    server, operator = (one / "startup" for one in (_kit(federation), federation.operator_kit))
    renew = "fedsight federation renew"
    yield from certificate(message("server's certificate"), server / "server.crt", renew)
    yield from _certificates(federation, renew)
    yield disk(federation.folder)
    yield from tried(message("settings"), lambda: read_server(federation.folder))
    yield from _running_server(federation)
    if supervisor.is_running(federation.server_home):
        yield from _server(federation.invitation, operator, server / "server.crt")
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


def _certificates(federation: FederationFolder, cure: str) -> Iterator[Finding]:
    """How long the certificates of the operators are valid, and of sites those that end soon."""
    try:
        members = certified(federation)
    except FedSightError as error:
        yield fault(message("certificates"), error)
        return
    for one in members:
        if one.kind == "operator":
            kit = federation.operator_kit / "startup" / "client.crt"
            path = kit if one.name == OPERATOR and kit.exists() else one.path
            yield from certificate(message("operator {name}", name=one.name), path, cure)
        elif one.kind == "site":
            found = certificate(message("certificate of {name}", name=one.name), one.path, cure)
            yield from (finding for finding in found if finding.state != "ok")


def _server(invitation: Invitation, startup: Path, own: Path | None = None) -> Iterator[Finding]:
    """Whether the server's name resolves, its port answers, and both sides' certificates fit.

    `own`: the server's certificate, as it lies on this machine.
    """
    host, port = invitation.host, invitation.port
    what = message("network")
    try:
        with hosts.connected(host, port, CONNECT_TIMEOUT) as plain:
            address = plain.getpeername()[0]
            said = {"server": hosts.written(host, port), "address": address}
            yield Finding(what, "ok", message("{server} answers ({address})", **said))
            yield from _tls(plain, host, startup, own)
    except socket.gaierror:
        value = message("the name {host} does not resolve", host=host)
        yield Finding(what, "bad", value, message("add it to the DNS or to /etc/hosts"))
    except OSError as error:
        why = error.strerror or str(error) or type(error).__name__
        server = hosts.written(host, port)
        value = message("{server} does not answer: {why}", server=server, why=why)
        cure = message("start the server, and open the port in the firewalls on the way")
        yield Finding(what, "bad", value, cure)


def _tls(plain: socket.socket, host: str, startup: Path, own: Path | None) -> Iterator[Finding]:
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
        yield Finding(what, "bad", value, cure)
        return
    shown = x509.load_der_x509_certificate(certificate)
    attributes = shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    names = [str(one.value) for one in attributes]
    if hosts.engine_name(host)[:64] not in names:  # FLARE cuts a long one
        value = message("the server's certificate is for {names}", names=", ".join(names))
        yield Finding(what, "bad", value, message("ask the operator for the invitation again"))
        return
    yield Finding(what, "ok", message("both ends accept each other"))
    yield from _shown(shown, own)


def _shown(certificate: x509.Certificate, own: Path | None) -> Iterator[Finding]:
    """Whether the certificate that the server shows ends soon, or is not the one that it has."""
    days = days_left(certificate)
    if own is not None and read(own) != certificate:
        value = message("the server shows an older one, for {n:,} more days", n=days)
        cure = message("start the server again; a run in progress goes on")
        yield Finding(message("server's certificate"), "note", value, cure)
    elif own is None and days < SOON:
        value = message("the one that the server shows is valid for {n:,} more days", n=days)
        cure = message("ask the operator for: fedsight federation renew")
        yield Finding(message("server's certificate"), "note", value, cure)


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


def _owner(site: SiteFolder, program: Path | None) -> Iterator[Finding]:
    """The owner's settings and images, and whether they permit a program."""
    try:
        settings, changed = settings_in_force(site.folder)
        owner = read_owner(site.folder / settings, None)
        check("site", owner.monitoring, owner.hooks)
    except ConfigError as error:
        yield fault(message("settings"), error)
        return
    if changed:
        value = message("the site was started with others than site.toml has now")
        yield Finding(message("settings"), "note", value, message("start the site again"))
    else:
        yield Finding(message("settings"), "ok", message("as they must be"))
    try:
        facts = open_images(owner)
    except FedSightError as error:
        yield fault(message("images"), error)
        return
    classes: Sequence[str] = facts["classes"]
    value = message(
        "{train:,} for training, {test:,} for testing; classes: {names}",
        train=facts["train"], test=facts["test"], names=", ".join(classes[:10]),
    )  # fmt: skip
    yield Finding(message("images"), "ok", value)
    if program is not None:
        yield from _program(site, settings, program)


def _program(site: SiteFolder, settings: str, path: Path) -> Iterator[Finding]:
    from fedsight.cli.doctor_program import permission  # brings torch

    try:
        yield from permission(site, settings, path)
    except FedSightError as error:
        yield fault(message("program"), error)


def _authority(federation: FederationFolder) -> Iterator[Finding]:
    """The authority's certificate and key, and whether the list of revocations is signed."""
    ca = federation.folder / "ca"
    last = message(
        "nothing can be signed for longer; create a new federation before, and have all join it"
    )
    what, path = message("authority's certificate"), federation.authority
    yield from certificate(what, path, last, AUTHORITY_SOON)
    if not (ca / kits.AUTHORITY_KEY).exists():
        cure = message("needed to admit sites and to sign revocations; restore the folder `ca`")
        yield Finding(message("authority's key"), "note", message("not on this machine"), cure)
    if not federation.lists_revoked:
        cure = message("revoke one of them again, with the authority's key in place")
        value = message("names are missing from the signed list")
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
        return Finding(what, "bad", message("one of its processes is suspended"), cure)
    if row.state == "drained":
        return Finding(what, "note", message("drained by its owner"))
    return Finding(what, "ok", message("connected"))

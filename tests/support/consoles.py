"""A console that is really served, in a thread, and a client that speaks HTTP to it."""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedsight.console.certificate import Certificate
from fedsight.console.changes import Changes, look_at_runs
from fedsight.console.door import Door, bound
from fedsight.console.pages import Console
from fedsight.console.queue import Queue
from fedsight.console.server import Server
from fedsight.console.sessions import Sessions
from fedsight.console.shell import Shell
from fedsight.console.site_pages import SiteConsole, look_at_site
from fedsight.deploy.site.folder import SiteFolder

PLAIN = Door()  # on this machine, without TLS


@dataclass(frozen=True)
class Answer:
    code: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Client:
    """Asks a served console; `cookie` is its session."""

    console: Any
    port: int
    cookie: str = ""
    trusts: ssl.SSLContext | None = None  # whom, with TLS

    @property
    def origin(self) -> str:
        return f"http{'' if self.trusts is None else 's'}://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, form: Mapping[str, str] | None = None, **headers: str
    ) -> Answer:
        """`path` is below the console's own; headers with _ for -, None leaves one out."""
        given = {"cookie": self.cookie, "origin": self.origin, **headers}
        sent = {key.replace("_", "-"): value for key, value in given.items() if value}
        connection: http.client.HTTPConnection
        if self.trusts is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        else:
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=20, context=self.trusts
            )
        try:
            body = None if form is None else urlencode(form)
            connection.request(method, self.console.base + path, body, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: Mapping[str, str] | None = None, **headers: str) -> Answer:
        return self.ask("POST", path, form or {}, **headers)

    def enter(self, token: str | None = None) -> Answer:
        """Log in with a token, or with the console's own."""
        answer = self.post("/session", {"token": token or self.console.sessions.token})
        self.cookie = answer.headers.get("set-cookie", "").partition(";")[0]
        return answer


@contextmanager
def serving(console: Shell, door: Door = PLAIN) -> Iterator[Client]:
    """Any console, served in a thread."""
    server = Server(console, door)
    with bound(0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Client(console, listening.getsockname()[1], trusts=trusting(door))
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def served(
    root: Path, federation: Any = None, sessions: Sessions | None = None, door: Door = PLAIN
) -> Iterator[Client]:
    """The console of the runs in `root`."""
    queue = Queue(root)
    changes = Changes(look_at_runs(root, queue.place))
    console = Console(sessions or Sessions(), changes, root, queue, federation)
    with serving(console, door) as client:
        queue.start()
        try:
            yield client
        finally:
            queue.close()


@contextmanager
def served_site(home: Path) -> Iterator[Client]:
    """The console of the owner of a site, who is logged in."""
    changes = Changes(look_at_site(home))
    with serving(SiteConsole(Sessions(), changes, SiteFolder.open(home))) as client:
        client.enter()
        yield client


@contextmanager
def served_site_as(home: Path, sessions: Sessions) -> Iterator[Client]:
    """The same, with tokens; nobody is logged in."""
    changes = Changes(look_at_site(home))
    with serving(SiteConsole(sessions, changes, SiteFolder.open(home))) as client:
        yield client


def make_certificate(folder: Path, *names: str, days: int = 1) -> tuple[Path, Path]:
    """A certificate that signs itself, for names and addresses, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "console.example")])
    now = datetime.now(UTC)
    found = [
        x509.IPAddress(ipaddress.ip_address(one)) if one[-1].isdecimal() else x509.DNSName(one)
        for one in names
    ]
    certificate = (
        x509.CertificateBuilder(
            issuer_name=subject,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(days=2),
            not_valid_after=now + timedelta(days=days),
        )
        .add_extension(x509.SubjectAlternativeName(found), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(exist_ok=True)
    paths = folder / "console.crt", folder / "console.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    paths[1].chmod(0o600)
    return paths


def trusting(door: Door) -> ssl.SSLContext | None:
    """What takes a console for the one that it is; None without TLS."""
    if door.certificate is None:
        return None
    return ssl.create_default_context(cafile=str(door.certificate.path))


def secured(folder: Path, *names: str) -> Door:
    """A door with TLS, for these names and 127.0.0.1."""
    return Door((), Certificate(*make_certificate(folder, *names, "127.0.0.1")))

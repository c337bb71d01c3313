"""The console for other machines: over TLS, or through a proxy that has it, and never without."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_line import refused
from consoles import make_certificate, secured, served, trusting
from federation_folders import folder_with_operators

from fedsight.console import certificate as certificates
from fedsight.console.certificate import Certificate
from fedsight.console.door import Door, Wish, open_door
from fedsight.core.errors import DeployError, StoreError
from fedsight.data.fetch.cache import VARIABLE
from fedsight.deploy.membership.federation import OPERATOR

NAME = "console.example"
NEEDS_TLS = "can be reached from other machines, so the console needs TLS"


def test_with_tls_a_browser_takes_it_for_the_one_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls", NAME)) as client:
        answer = client.enter()
        kept = answer.headers["set-cookie"]
        assert kept.startswith("__Secure-")
        assert "; Secure" in kept
        assert client.get("/").code == 200
        host = f"{NAME}:{client.port}"
        assert client.get("/", host=host).code == 200
        assert client.post("/language/zh", host=host, origin=f"https://{host}").code == 303


def test_with_tls_nothing_is_said_without_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls", NAME)) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            said = b""
            while part := plain.recv(1000):
                said += part
        assert b"HTTP" not in said
        old = ssl.create_default_context()
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with (
            socket.create_connection(("127.0.0.1", client.port), timeout=20) as tcp,
            pytest.raises(OSError, match=r"TLS|SSL|reset|EOF"),
        ):
            old.wrap_socket(tcp)
        assert client.enter().code == 303


def test_a_request_in_the_packet_that_ends_the_handshake_is_answered(tmp_path: Path) -> None:
    """With TLS 1.3 it may be there before the connection has been taken over."""
    (tmp_path / "runs").mkdir()
    door = secured(tmp_path / "tls", NAME)
    context = trusting(door)
    assert context is not None
    with served(tmp_path / "runs", door=door) as client:
        for _ in range(20):
            ingoing, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(ingoing, outgoing, server_hostname=NAME)
            with socket.create_connection(("127.0.0.1", client.port), timeout=20) as tcp:
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        tcp.sendall(outgoing.read())
                        ingoing.write(tcp.recv(1 << 16))
                place = f"{client.console.base}/session"
                tls.write(f"GET {place} HTTP/1.1\r\nhost: {NAME}\r\n\r\n".encode())
                tcp.sendall(outgoing.read())  # the end of the handshake, and the request
                said = b""
                while b"HTTP/1.1 200" not in said:
                    ingoing.write(tcp.recv(1 << 16))
                    try:
                        said += tls.read(1 << 16)
                    except ssl.SSLWantReadError:
                        continue


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.2", "localhost", "a.console.example"])
def test_with_tls_names_are_those_of_the_certificate(tmp_path: Path, host: str) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls", NAME)) as client:
        client.enter()
        at = f"{host}:{client.port}"
        assert client.get("/", host=at, origin=f"https://{at}").code == 403


@pytest.mark.parametrize("origin", ["http://127.0.0.1", "https://console.example", "null"])
def test_with_tls_a_page_without_it_is_one_from_elsewhere(tmp_path: Path, origin: str) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", door=secured(tmp_path / "tls", NAME)) as client:
        client.enter()
        given = f"{origin}:{client.port}" if "127" in origin else origin
        assert client.post("/new", {"example": "fashion"}, origin=given).code == 403
        assert client.console.queue.jobs() == []


def test_a_proxy_shows_it_under_its_own_name_and_is_believed_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    opened = open_door(Wish(0, proxy="https://fl.example.org/"))
    opened.close()
    assert opened.origin == "https://fl.example.org"
    through = {"host": "fl.example.org", "origin": "https://fl.example.org"}
    with served(tmp_path / "runs", door=opened.door) as client:
        answer = client.post("/session", {"token": client.console.sessions.token}, **through)
        assert answer.headers["set-cookie"].startswith("__Secure-")
        client.cookie = answer.headers["set-cookie"].partition(";")[0]
        assert client.get("/", **through).code == 200
        assert client.get("/").code == 403  # a proxy that changes the header Host
        forwarded = {"x_forwarded_host": "fl.example.org", "forwarded": "host=fl.example.org"}
        assert client.get("/", **forwarded).code == 403
        form = {"example": "fashion"}
        evil = {"host": "fl.example.org", "origin": "http://fl.example.org"}
        assert client.post("/new", form, **evil).code == 403


def test_certificates_name_machines_as_browsers_read_them(tmp_path: Path) -> None:
    found = Certificate(*make_certificate(tmp_path, "*.example.org", "FL.example", "10.0.0.7"))
    for host in ("a.example.org", "A.EXAMPLE.ORG.", "fl.example", "10.0.0.7"):
        assert found.covers(host)
    for host in ("example.org", "a.b.example.org", ".example.org", "10.0.0.8", "", "*"):
        assert not found.covers(host)
    six = Certificate(*make_certificate(tmp_path / "six", "2001:db8::7"))
    assert six.covers("2001:DB8:0::7")


def test_a_renewed_certificate_is_taken_over_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "GLANCE", 0.0)
    (tmp_path / "runs").mkdir()
    door = secured(tmp_path / "tls", NAME)
    with served(tmp_path / "runs", door=door) as client:
        client.enter()
        make_certificate(tmp_path / "tls", "other.example", "127.0.0.1")
        with pytest.raises(ssl.SSLError):
            client.get("/")
        client.trusts = trusting(door)
        assert client.get("/", host=f"other.example:{client.port}").code == 200
        assert client.get("/", host=f"{NAME}:{client.port}").code == 403
        (tmp_path / "tls" / "console.key").write_bytes(b"half")
        assert client.get("/").code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "fl.example.org"])
def test_without_tls_it_listens_on_this_machine_alone(host: str) -> None:
    with pytest.raises(StoreError, match=NEEDS_TLS) as caught:
        open_door(Wish(0, host))
    assert "--certificate" in caught.value.cure
    assert "tunnel" in caught.value.cure


def test_what_cannot_be_served_is_said_with_the_cure(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, NAME)
    other = make_certificate(tmp_path / "other", NAME)[1]
    wishes: list[tuple[Wish, str]] = [
        (Wish(0, "0.0.0.0", certificate), "belong together"),
        (Wish(0, "0.0.0.0", certificate, other), "cannot be used"),
        (Wish(0, "0.0.0.0", key, key), "cannot be used"),
        (Wish(0, "0.0.0.0", tmp_path / "none", key), "No such file"),
        (Wish(0, "0.0.0.0", certificate, tmp_path / "none"), "No such file"),
        (Wish(0, "a b", certificate, key), "not the name or address"),
        (Wish(0, proxy="http://fl.example.org"), "not the address of a proxy"),
        (Wish(0, proxy="https://a@b/"), "not the address of a proxy"),
        (Wish(0, proxy="https://fl.example.org/path"), "not the address of a proxy"),
        (Wish(0, proxy="fl.example.org"), "not the address of a proxy"),
        (Wish(0, "0.0.0.0", proxy="https://fl.example.org"), "on this machine"),
        (Wish(0, "192.0.2.7", certificate, key), "cannot serve the console at port 0 of 192.0.2.7"),
        (Wish(0, "127.0.0.1", *make_certificate(tmp_path / "x", "*.example.org")), "is for"),
        (Wish(0, "127.0.0.1", *make_certificate(tmp_path / "y", NAME, days=-1)), "ended on"),
    ]
    for wish, cause in wishes:
        with pytest.raises(StoreError, match=cause) as caught:
            open_door(wish)
        assert caught.value.cure
    key.chmod(0o640)
    with pytest.raises(DeployError, match="0640"):
        open_door(Wish(0, "127.0.0.1", certificate, key))


def test_a_federation_has_a_certificate_that_serves(tmp_path: Path) -> None:
    pair = make_certificate(tmp_path, "127.0.0.1")
    opened = open_door(Wish(0, "0.0.0.0"), pair)
    opened.close()
    assert opened.door.certificate is not None
    assert opened.origin.startswith("https://127.0.0.1:")
    here = open_door(Wish(0), pair)
    here.close()
    assert here.door == Door()  # on this machine it is not needed


def serve(*words: object) -> tuple[subprocess.Popen[str], list[str]]:
    command = [sys.executable, "-m", "fedsight", "console", "--port", "0", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = []
    while not said or "The console is at" not in said[-1]:
        said.append(process.stdout.readline().strip())
    return process, said


def test_the_command_serves_a_federation_to_its_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    federation = folder_with_operators(tmp_path / "wards")
    startup = federation.server_home / "kit" / "startup"
    startup.mkdir(parents=True)
    certificate, key = make_certificate(tmp_path / "tls", "127.0.0.1")
    shutil.copy(certificate, startup / "server.crt")
    shutil.copy2(key, startup / "server.key")
    words = ("--federation", federation.folder, "--host", "0.0.0.0")
    nobody = refused(7, "console", *words, "--port", 0)
    assert "nobody has a token for this console" in nobody
    assert "fedsight tokens add" in nobody
    token, _ = accepted_token(federation.folder)
    process, said = serve(*words)
    with process:
        try:
            address = urlsplit(said[-1].rpartition(" ")[2])
            assert address.scheme == "https"
            assert address.fragment == ""  # no token in what may be kept as a log
            assert token not in " ".join(said)
            assert re.search(r"SHA-256.*([0-9A-F]{2}:){31}", " ".join(said))
            assert OPERATOR in " ".join(said)
            context = ssl.create_default_context(cafile=str(certificate))
            base = address.path.removesuffix("/session")
            assert address.port is not None
            connection = http.client.HTTPSConnection("127.0.0.1", address.port, context=context)
            origin = {"origin": f"https://127.0.0.1:{address.port}"}
            connection.request("POST", address.path, f"token={token}", origin)
            answer = connection.getresponse()
            answer.read()
            cookie = str(answer.headers["set-cookie"]).partition(";")[0]
            connection.request("GET", f"{base}/", headers={"cookie": cookie})
            assert OPERATOR in connection.getresponse().read().decode()
            connection.close()
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait() in (0, -signal.SIGTERM)
    again, said_again = serve(*words)
    with again:
        again.send_signal(signal.SIGTERM)
    assert urlsplit(said_again[-1].rpartition(" ")[2]).path == address.path  # it can be kept


def accepted_token(folder: Path) -> tuple[str, object]:
    from fedsight.console.tokens import TokenFile

    return TokenFile.within(folder).add(OPERATOR)

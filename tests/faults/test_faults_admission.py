"""Who may connect, under which name, and what may be asked by whom; all else is refused."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from loopback import Loopback
from processes import DEPLOYED, wait_until

from fedsight.coordinator.asked import asked
from fedsight.coordinator.folders import LOCK
from fedsight.core import locks
from fedsight.core.errors import DeployError, SiteError
from fedsight.deploy.membership import certificates, kits, presence
from fedsight.deploy.membership.federation import OPERATOR
from fedsight.deploy.membership.operator_folder import OperatorFolder, act_as
from fedsight.deploy.membership.operators import GLANCE
from fedsight.deploy.membership.renewal import renew
from fedsight.deploy.membership.revocations import Revocations
from fedsight.deploy.server.job_definition import write_job
from fedsight.deploy.server.looking import ask, look
from fedsight.deploy.server.operator import open_session
from fedsight.deploy.server.server import disable_site, end_jobs
from fedsight.governance.ledger import Ledger

SILENT = 3.0  # seconds after which a server that has not hung up has let somebody in

CONTRACTS = {
    "site-00": f"operators = ['{OPERATOR}']\nrounds = 2\nannounce = false",
    "site-02": "operators = ['somebody@else.example']",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A federation with three admitted sites, of which only the server runs."""
    with contextlib.ExitStack() as stack:
        made = Loopback(tmp_path_factory.mktemp("federation"), 3, stack)
        for name, text in CONTRACTS.items():
            (made.sites[name].folder / "site.toml").write_text(f"[contract]\n{text}\n")
        made.start_server()
        wait_until(lambda: listens(made.federation.invitation.port), DEPLOYED)
        yield made


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
        return True
    return False


def let_in(made: Loopback, certificate: Path | None, key: Path | None) -> bool:
    """Whether the server goes on talking after a TLS handshake with this certificate."""
    context = ssl.create_default_context(cafile=str(made.federation.folder / "ca" / "rootCA.pem"))
    context.check_hostname = False
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    address = ("localhost", made.federation.invitation.port)
    try:
        with socket.create_connection(address, SILENT) as plain, context.wrap_socket(plain) as line:
            line.settimeout(SILENT)
            return bool(line.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def made_up(
    folder: Path, authority: tuple[x509.Certificate, rsa.RSAPrivateKey] | None, days: int
) -> tuple[Path, Path]:
    """A certificate for site-00 and its key: by the authority, or by itself; `days` from now."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site-00")])
    now = datetime.datetime.now(datetime.UTC)
    signer = (authority[1] if authority else key).public_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority[0].subject if authority else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=10))
        .not_valid_after(now + datetime.timedelta(days=days))
        # Python 3.13 lets nobody in without (RFC 5280, section 4.2.1.1).
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        .sign(authority[1] if authority else key, hashes.SHA256())
    )
    paths = folder / "made.crt", folder / "made.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return paths


def authority_of(made: Loopback) -> tuple[x509.Certificate, rsa.RSAPrivateKey]:
    folder = made.federation.folder / "ca"
    key = serialization.load_pem_private_key((folder / "rootCA.key").read_bytes(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return x509.load_pem_x509_certificate((folder / "rootCA.pem").read_bytes()), key


def test_a_certificate_of_the_federation_is_let_in(server: Loopback) -> None:
    startup = server.sites["site-00"].kit / "startup"
    assert let_in(server, startup / "client.crt", startup / "client.key")


def test_no_certificate_is_refused(server: Loopback) -> None:
    assert not let_in(server, None, None)


def test_a_self_made_certificate_is_refused(server: Loopback, tmp_path: Path) -> None:
    assert not let_in(server, *made_up(tmp_path, None, 10))


def test_an_expired_certificate_is_refused(server: Loopback, tmp_path: Path) -> None:
    authority = authority_of(server)
    assert let_in(server, *made_up(tmp_path, authority, 10))
    assert not let_in(server, *made_up(tmp_path, authority, -1))


def test_a_plaintext_client_is_refused(server: Loopback) -> None:
    address = ("localhost", server.federation.invitation.port)
    with socket.create_connection(address, SILENT) as line:
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            answer = line.recv(100)
    assert b"HTTP" not in answer
    assert not answer or answer[0] == 21  # nothing, or a TLS alert


def test_a_site_cannot_take_anothers_name(server: Loopback) -> None:
    """Certified as site-00, it says that it is site-01."""
    from fedsight.deploy import demo
    from fedsight.deploy.processes import supervisor

    site = server.sites["site-00"]
    kits.write_policies(site.kit, "site")
    other = supervisor.site(site.kit, site.folder, "site-01")
    server.running[site.folder] = demo.launch(other.arguments, site.folder, module=other.module)
    log = server.server / "kit" / "log.txt"
    try:
        wait_until(lambda: "requires identity 'site-01'" in log.read_text(), DEPLOYED)
    finally:
        server.running[site.folder].kill()
        server.running.pop(site.folder).wait()
    assert presence.presence(server.federation.presences, "site-01") is None


def test_a_revoked_site_is_out_at_once_and_stays_out(server: Loopback) -> None:
    server.start_site("site-01")
    wait_until(lambda: server.alive("site-01"), DEPLOYED)
    server.federation.revoke("site-01", "its contract has ended")
    assert disable_site(server.federation, "site-01")
    wait_until(lambda: not server.alive("site-01"), DEPLOYED)
    log = server.server / "kit" / "log.txt"
    home = server.sites["site-01"].folder
    server.kill(home, "parent")  # what it is started as again is refused by name
    wait_until(lambda: "Reject disabled client registration: site-01" in log.read_text(), DEPLOYED)
    assert not server.alive("site-01")
    server.running[home].terminate()
    server.running.pop(home).wait()


def operator(made: Loopback, folder: Path, name: str, read_only: bool) -> OperatorFolder:
    """Another operator, who was admitted."""
    invitation = made.federation.invitation
    request = OperatorFolder.create(folder / name, name, invitation, read_only)
    made.federation.add_operator(request, read_only)
    found = OperatorFolder.open(folder / name)
    found.install_kit()
    return found


def some_job(folder: Path, name: str = "job") -> Path:
    """A job that the site is to refuse, or to have nothing to do in."""
    write_job(folder / name, name, ["site-00"], {"run": "r", "fingerprint": "f", "number": 1})
    return folder / name


def test_who_may_only_read_sees_the_federation_and_starts_nothing(
    server: Loopback, tmp_path: Path
) -> None:
    guest = operator(server, tmp_path, "guest@oslo.example", True)
    renew(server.federation, [guest.name], days=900)
    table = look(guest, "status")
    assert table["federation"] == server.federation.name
    assert certificates.days_left(certificates.read(guest.kit / "startup" / "client.crt")) == 899
    with pytest.raises(DeployError, match="no run 'none'"):
        look(guest, "report", "none")
    with pytest.raises(DeployError, match="may look on, and start, stop and revoke nothing"):
        act_as(server.federation, guest.folder)
    # As FLARE's own API, without our command line.
    with open_session(guest.kit, guest.name, 10) as session:
        for forbidden in (
            lambda: session.abort("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
            lambda: session.disable_site("site-00"),
            lambda: session.submit(some_job(tmp_path)),
        ):
            with pytest.raises(DeployError, match="the server refused"):
                forbidden()
        with pytest.raises(DeployError, match="may look on, and start, stop and revoke nothing"):
            session.ask("stop", "first")
    assert not list((server.server / "kit" / "jobs").glob("*/meta"))


def test_who_may_start_runs_pauses_and_stops_them_from_afar(
    server: Loopback, tmp_path: Path
) -> None:
    own = operator(server, tmp_path, "far@oslo.example", False)
    folder = server.federation.runs / "long"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    with locks.hold(folder / LOCK, 1.0, ValueError()):  # it goes on
        for what in ("pause", "stop"):
            ask(own, what, "long")
            assert asked(folder) == what
        with pytest.raises(DeployError, match=r"no run '\.\./long'"):
            ask(own, "stop", "../long")
        with pytest.raises(DeployError, match="nothing like that"):
            ask(own, "remove", "long")
    with pytest.raises(DeployError, match="is not running"):
        ask(own, "stop", "long")
    found = [line for line in server.federation.events() if line["event"] == "asked"]
    assert [(line["what"], line["operator"]) for line in found] == [
        ("pause", own.name),
        ("stop", own.name),
    ]
    shutil.rmtree(folder)


def is_refused(made: Loopback, kit: Path, user: str) -> bool:
    """Whether the server lets nobody log in with this kit and name."""
    log = made.server / "kit" / "log.txt"
    before = log.read_text().count(f"Created user session for {user}")
    with pytest.raises(DeployError, match=f"refuses {user}"), open_session(kit, user, 0):
        pass
    return log.read_text().count(f"Created user session for {user}") == before


def test_a_session_of_a_revoked_operator_ends(server: Loopback, tmp_path: Path) -> None:
    own = operator(server, tmp_path, "gone@oslo.example", False)
    with open_session(own.kit, own.name, 10) as session:
        number = session.submit(some_job(tmp_path))  # it waits: the site is not there
        server.federation.revoke(own.name, "has left")
        time.sleep(2 * GLANCE)
        with pytest.raises(DeployError, match="the server refused"):
            session.submit(some_job(tmp_path, "other"))
    assert end_jobs(server.federation, OPERATOR) == 0
    assert end_jobs(server.federation, own.name) == 1
    with open_session(server.federation.operator_kit, OPERATOR, 10) as session:
        wait_until(lambda: session.status(number).startswith("FINISHED"), DEPLOYED)
    assert is_refused(server, own.kit, own.name)
    with pytest.raises(DeployError, match=r"'gone@oslo.example' was revoked: has left"):
        act_as(server.federation, own.folder)


def test_a_site_opens_no_session(server: Loopback, tmp_path: Path) -> None:
    """With FLARE's kit of an operator around its certificate."""
    shutil.copytree(server.federation.operator_kit, tmp_path / "kit")
    for name in ("client.crt", "client.key"):
        own = server.sites["site-00"].kit / "startup" / name
        shutil.copy(own, tmp_path / "kit" / "startup" / name)
    assert is_refused(server, tmp_path / "kit", "site-00")


@pytest.fixture(scope="module")
def connected(server: Loopback) -> Loopback:
    """The federation with two of its sites at work."""
    for name in CONTRACTS:
        server.start_site(name)
    wait_until(lambda: all(server.alive(name) for name in CONTRACTS), DEPLOYED)
    return server


def outcome(made: Loopback, job: Path) -> str:
    """How a job ends that the operator submits."""
    with open_session(made.federation.folder / "operator" / "kit", OPERATOR, 10) as session:
        number = session.submit(job)
        wait_until(lambda: session.status(number).startswith(("FAILED", "FINISHED")), DEPLOYED)
        return session.status(number)


def test_a_job_with_code_is_refused(connected: Loopback, tmp_path: Path) -> None:
    write_job(tmp_path / "job", "job", ["site-00"], {"run": "r", "fingerprint": "f", "number": 1})
    code = tmp_path / "job" / "app" / "custom"
    code.mkdir()
    (code / "mine.py").write_text("print('in')\n")
    assert outcome(connected, tmp_path / "job").endswith("FAILED_TO_RUN")
    log = connected.server / "kit" / "log.txt"
    wait_until(lambda: "BYOC not permitted" in log.read_text())  # it is written a little later


def test_a_job_with_another_class_is_refused(connected: Loopback, tmp_path: Path) -> None:
    write_job(tmp_path / "job", "job", ["site-00"], {"run": "r", "fingerprint": "f", "number": 1})
    path = tmp_path / "job" / "app" / "config" / "config_fed_client.json"
    ours, theirs = (
        "fedsight.deploy.flare.components.SiteComponent",
        "nvflare.app_common.np.np_trainer.NPTrainer",
    )
    path.write_text(path.read_text().replace(ours, theirs))
    assert not outcome(connected, tmp_path / "job").endswith("COMPLETED")
    kit = connected.sites["site-00"].kit
    said = [log.read_text() for log in kit.rglob("log.txt")]
    assert any("is not the one that this version of FedSight writes" in text for text in said)


def test_a_second_process_of_one_site_is_refused(connected: Loopback) -> None:
    with pytest.raises(DeployError, match="is already running"):
        connected.sites["site-00"].start("fashion-mnist-12k", None, print)


def test_a_site_knows_who_signed_the_job_and_answers_nobody_else(connected: Loopback) -> None:
    """Known there whatever the server says."""
    found = presence.presences(connected.federation.presences)
    declared = {name: found[name].declared for name in CONTRACTS}
    assert declared["site-00"] is None
    assert declared["site-02"] is not None
    connected.federation.revoke("site-01", "it is not there")
    store = connected.run("signed", rounds={"rounds": 2, "quorum": 1})
    assert [line["sites"] for line in store.history()] == [["site-00"]] * 2
    absent = [line for line in connected.federation.events() if line["event"] == "absent"]
    assert {line["site"] for line in absent} == {"site-02"}
    assert absent[0]["why"] == (
        f"site 'site-02': contract.operators: the contract does not list the operator {OPERATOR}"
    )

    program, _ = store.program()
    entries = Ledger(connected.sites["site-00"].folder).entries()
    asked = [("declaration", 0), ("update", 1), ("update", 2), ("figures", 2)]
    asked += [("losses", 0), ("scores", 0)]  # how far the final model's answers can be trusted
    charged = [one for one in entries if one.kind != "released"]
    assert [(one.kind, one.round) for one in charged] == asked
    assert [one.question for one in entries[1::2]] == [one.question for one in charged]
    assert {one.asked_by for one in entries} == {(OPERATOR,)}
    assert {one.program for one in entries} == {program.fingerprint}
    refuser = connected.sites["site-02"].folder
    (refused,) = Ledger(refuser).entries()
    assert (refused.kind, refused.program) == ("refused", program.fingerprint)
    assert refused.asked_by == (OPERATOR,)
    assert "contract.operators" in refused.why
    said = json.loads((connected.sites["site-00"].folder / "declared.json").read_text())
    assert said is None


def test_who_is_revoked_again_is_dropped_at_once(connected: Loopback) -> None:
    """The federation's folder was restored to before the list that a site holds."""
    key = connected.federation.folder / "ca" / kits.AUTHORITY_KEY
    Revocations.signed(1, ["site-02"], key).write(connected.sites["site-00"].folder)
    assert connected.alive("site-02")
    with pytest.raises(SiteError, match="revoked again: site-02"):
        connected.run("restored", rounds={"rounds": 1, "quorum": 1})
    wait_until(lambda: not connected.alive("site-02"), DEPLOYED)
    assert connected.alive("site-00")
    assert "site-02" not in connected.federation.admitted()


def came(made: Loopback, site: str) -> float:
    """When the server first heard from the site's process."""
    found = presence.presence(made.federation.presences, site)
    return 0.0 if found is None else found.since


def test_a_running_site_gets_its_renewed_certificate_and_the_list_of_revocations(
    connected: Loopback,
) -> None:
    """And connects with it, to a server that has a renewed one, too."""
    home = connected.sites["site-00"].folder
    path = home / "kit" / "startup" / "client.crt"
    connected.federation.sign_revocations()
    renew(connected.federation, days=950)
    wait_until(lambda: certificates.days_left(certificates.read(path)) == 949, DEPLOYED)
    wait_until(
        lambda: Revocations.read(home).lacking(connected.federation.revocations) == [], DEPLOYED
    )

    def taken() -> list[str]:
        events = connected.federation.events()
        return [one["site"] for one in events if one["event"] == "certificate taken"]

    wait_until(lambda: "site-00" in taken(), DEPLOYED)  # with its next heartbeat
    killed = time.time()
    for folder in (connected.server, home):
        connected.kill(folder, "parent")
    wait_until(lambda: came(connected, "site-00") > killed, DEPLOYED)
    shown = ssl.get_server_certificate(("localhost", connected.federation.invitation.port))
    assert certificates.days_left(x509.load_pem_x509_certificate(shown.encode())) == 949
    assert taken().count("site-00") == 1


def test_a_site_refuses_the_job_of_an_operator_on_its_list_whatever_the_server_says(
    connected: Loopback, tmp_path: Path
) -> None:
    """The server's records are those of an older backup, which knows nothing of it."""
    own = operator(connected, tmp_path, "late@oslo.example", False)
    home = connected.sites["site-00"].folder
    connected.federation.revoke(own.name, "has left")
    connected.federation.sign_revocations()
    wait_until(lambda: own.name in Revocations.read(home).names, DEPLOYED)
    (connected.federation.folder / "revoked.json").write_text("{}")
    time.sleep(2 * GLANCE)
    with open_session(own.kit, own.name, 10) as session:
        number = session.submit(some_job(tmp_path))
        wait_until(lambda: session.status(number).startswith(("FAILED", "FINISHED")), DEPLOYED)
        assert not session.status(number).endswith("COMPLETED")
    said = [log.read_text() for log in (home / "kit").rglob("log.txt")]
    assert any(f"signed by {own.name}, who was revoked" in text for text in said)

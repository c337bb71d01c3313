"""A server hands a site a certificate that is not the renewal of its own.

It has no key of the authority, but certificates that the authority has signed: of other sites, of
operators, older ones. With another key's the site could not connect any more; with another name's
or role's it would sign and speak as somebody else; with an older one it would end sooner. A revoked
site waits to be renewed with the others, and whoever can send orders sends them without end.

With real processes: `test_a_running_site_gets_its_renewed_certificate` in `tests/faults/`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import authorities
import pytest
from nvflare.private.admin_defs import Message as Order
from nvflare.private.admin_defs import MsgHeader, ReturnCode, ok_reply

from fedsight.core.errors import DeployError
from fedsight.deploy.flare import updates
from fedsight.deploy.flare.updates import TOPIC, UpdateProcessor, Updates
from fedsight.deploy.membership import certificates, renewal
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.membership.presence import Heartbeat
from fedsight.deploy.membership.renewal import renew
from fedsight.deploy.membership.revocations import Revocations

SITE = "ward"
# What a server could send instead, and what a site says of it.
FOREIGN = {
    "another site's": ({"name": "oslo"}, "it is for another key"),
    "the same name with another key": ({"key": "thief"}, "it is for another key"),
    "another name with its key": ({"name": "oslo", "key": SITE}, "it is for 'oslo'"),
    "an operator's with its key": ({"role": "lead"}, "in the role 'lead'"),
    "one that may sign others": ({"ca": True}, "for another use"),
    "an older one": ({"days": 50}, "ends no later"),
    "one that begins tomorrow": ({"begins": 1}, "it is valid only from"),
    "one that outlives the authority": ({"days": 2000}, "would outlive the authority's"),
    "another authority's": ({"by": "others"}, "authority has not signed it"),
}


@pytest.fixture
def startup(tmp_path: Path) -> Path:
    """The kit of a site whose certificate is valid for 100 days more."""
    return authorities.give_kit(tmp_path / SITE, SITE)


def made(name: str = SITE, role: str = "client", days: float = 300, **other: Any) -> bytes:
    return authorities.certify(name, role, days, **other)


def naive(startup: Path, data: bytes) -> bool:
    """The weakened build: what the server sends is the renewal."""
    (startup / "client.crt").write_bytes(data)
    return True


def order(startup: Path, body: object, processor: UpdateProcessor | None = None) -> str:
    """What a site answers to the server's order."""
    engine = SimpleNamespace(args=SimpleNamespace(workspace=str(startup.parent)))
    reply = (processor or UpdateProcessor()).process(Order(TOPIC, body), engine)
    assert reply.get_header(MsgHeader.RETURN_CODE) in (ReturnCode.OK, ReturnCode.ERROR)
    return str(reply.body)


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize(("other", "why"), FOREIGN.values(), ids=list(FOREIGN))
def test_a_site_takes_only_its_own_renewal(
    startup: Path, weak: bool, other: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(certificates, "take", naive)
    before = (startup / "client.crt").read_bytes()
    answer = order(startup, {"certificate": made(**other).decode()})
    assert (answer == "ok") == weak
    assert ((startup / "client.crt").read_bytes() != before) == weak
    assert weak or why in answer


def test_a_site_takes_its_own_renewal_once_and_nothing_that_hangs_on_it(startup: Path) -> None:
    honest = made()
    assert certificates.take(startup, honest + b"-----BEGIN CERTIFICATE-----\nmore\n")
    assert (startup / "client.crt").read_bytes() == honest
    assert not certificates.take(startup, honest)
    assert certificates.days_left(certificates.read(startup / "client.crt")) == 299


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {"more": ""},
        {"certificate": 7},
        {"certificate": ""},
        {"certificate": "x" * 20_000},
        {"certificate": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        {"certificate": "\ud800"},
        {"revocations": 7},
        {"revocations": Revocations(3, ("oslo",)).table()},
    ],
)
def test_what_is_neither_a_certificate_nor_a_list_is_refused(startup: Path, body: object) -> None:
    before = sorted((path, path.read_bytes()) for path in startup.glob("*"))
    assert order(startup, body).startswith("refused by the site: ")
    assert sorted((path, path.read_bytes()) for path in startup.glob("*")) == before


@pytest.mark.parametrize("weak", [True, False])
def test_a_flood_of_orders_costs_a_site_one_look_a_second_and_few_lines(
    startup: Path, weak: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[bytes] = []
    monkeypatch.setattr(certificates, "take", lambda _, data: looks.append(data))
    clock = iter(range(10**6))  # an order every hundredth of a second
    named = SimpleNamespace(monotonic=lambda: next(clock) / 100)
    monkeypatch.setattr(updates, "time", named)
    if weak:
        monkeypatch.setattr(updates, "LEAST_INTERVAL", 0.0)
    processor, body = UpdateProcessor(), {"certificate": made().decode()}
    for _ in range(500):
        order(startup, body, processor)
    assert len(looks) == (500 if weak else 5)
    assert len(caplog.records) == (0 if weak else 9)  # the 1st, 2nd, 4th, ... refusal


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    """A federation with the sites `ward`, which is revoked, and `oslo`, for 10 days more."""
    folder = tmp_path / "wards"
    (folder / "admitted").mkdir(parents=True)
    authorities.give(folder)
    (folder / "invitation.toml").write_text(
        'federation = "wards"\nhost = "localhost"\nport = 1\nfingerprint = "x"\n'
    )
    server = authorities.give_kit(folder / "server", "localhost", "server")
    (server / "server.crt").write_bytes((server / "client.crt").read_bytes())
    for name in (SITE, "oslo"):
        (folder / "admitted" / f"{name}.toml").touch()
        (folder / "admitted" / f"{name}.crt").write_bytes(made(name, days=10))
    found = FederationFolder(folder, Invitation("wards", "localhost", 1, "x"))
    found.revoke(SITE, "stolen")
    return found


@pytest.mark.parametrize("weak", [True, False])
def test_a_revoked_site_is_not_renewed_and_not_sent_what_was_signed_before(
    federation: FederationFolder, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if weak:
        monkeypatch.setattr(FederationFolder, "revoked", lambda self: {})
    before = federation.folder / "admitted" / f"{SITE}.crt"
    old = before.read_bytes()
    renew(federation, days=200)
    assert (before.read_bytes() != old) == weak
    before.write_bytes(made(days=200))  # signed before it was revoked
    ends = certificates.read(federation.folder / "admitted" / "oslo.crt").not_valid_after_utc
    said = Heartbeat(certificate=ends.replace(year=2000).isoformat())
    sender = Updates(federation.folder)
    assert "certificate" in sender.lacking("oslo", said)
    assert ("certificate" in sender.lacking(SITE, said)) == weak
    if not weak:
        with pytest.raises(DeployError, match="'ward' was revoked: stolen"):
            renew(federation, [SITE])


@pytest.mark.parametrize("weak", [True, False])
def test_a_certificate_of_another_role_is_not_renewed_as_a_sites(
    federation: FederationFolder, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who can write to the folder `admitted`, but has no key of the authority, waits."""
    if weak:
        monkeypatch.setattr(renewal, "_own", lambda member: certificates.read(member.path))
    path = federation.folder / "admitted" / "oslo.crt"
    path.write_bytes(made("anna@lyon.example", "lead", 10))
    if weak:
        renew(federation, ["oslo"])
        assert certificates.role_of(certificates.read(path)) == "lead"
        assert certificates.days_left(certificates.read(path)) > 800
        return
    with pytest.raises(DeployError, match=r"'anna@lyon.example' in the role 'lead'"):
        renew(federation)
    assert certificates.days_left(certificates.read(path)) < 10


class Sites:
    """FLARE's way to the sites, at the server; each order is answered as `answer` says."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send_request_to_client(self, order: Order, token: str, timeout: float) -> Any:
        self.sent.append((token, order.body))
        return self.answer(token)


def taken(token: str = "") -> Any:
    return SimpleNamespace(reply=ok_reply())


class AtOnce:
    """Threads that have ended when they have begun."""

    def __init__(self, target: Any, args: Any, daemon: bool) -> None:
        self.start = lambda: target(*args)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the server's updates go by."""
    now = [1000.0]
    monkeypatch.setattr(updates, "time", SimpleNamespace(monotonic=lambda: now[0]))
    threads = SimpleNamespace(Thread=AtOnce, Semaphore=threading.Semaphore)
    monkeypatch.setattr(updates, "threading", threads)
    return now


def ends(federation: FederationFolder, name: str = "oslo") -> str:
    path = federation.folder / "admitted" / f"{name}.crt"
    return certificates.read(path).not_valid_after_utc.isoformat()


OLD = "2000-01-01T00:00:00+00:00"


def history(federation: FederationFolder) -> list[str]:
    return [one["event"] for one in federation.events() if one["event"] == "certificate taken"]


@pytest.mark.parametrize("weak", [True, False])
def test_a_site_that_goes_back_and_forth_fills_no_history(
    federation: FederationFolder, clock: list[float], weak: bool
) -> None:
    """It answers that it has the certificate, and says the opposite with its next heartbeat."""
    sender, sites = Updates(federation.folder), Sites(taken)
    for turn in range(20):
        clock[0] += 60
        if weak:
            sender._taken.clear()
        said = OLD if turn % 2 == 0 else ends(federation)
        sender.offer("oslo", "t", Heartbeat(certificate=said), sites)
        assert turn or not history(federation), "before it has said so"
    assert len(sites.sent) == 10
    assert len(history(federation)) == (10 if weak else 1)


def test_what_sites_do_gives_way_in_the_history(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsight.deploy.membership.federation.EVENT_BYTES", 2000)
    for _ in range(100):
        federation.log_event("certificate taken", site="oslo")
    assert (federation.folder / "events.jsonl").stat().st_size < 2500
    assert federation.events()[0]["event"] == "revoked"


@pytest.mark.parametrize("weak", [True, False])
def test_sites_that_do_not_answer_are_asked_less_and_less(
    federation: FederationFolder, clock: list[float], weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes one of the few slots until the answer is given up; four could hold them all."""
    if weak:
        monkeypatch.setattr(updates, "MAX_INTERVAL", updates.OFFER_INTERVAL)

    def late(token: str) -> None:
        clock[0] += updates.ANSWER_TIMEOUT

    sender, sites = Updates(federation.folder), Sites(late)
    until = clock[0] + 7200
    while clock[0] < until:
        clock[0] += 1
        sender.offer("oslo", "t", Heartbeat(certificate=OLD), sites)
    assert len(sites.sent) > 300 if weak else len(sites.sent) < 12
    sites.answer = taken
    clock[0] += updates.MAX_INTERVAL
    for _ in range(3):  # it answers again
        sender.offer("oslo", "t", Heartbeat(certificate=OLD), sites)
        clock[0] += updates.OFFER_INTERVAL
    assert [token for token, _ in sites.sent[-3:]] == ["t"] * 3


def test_a_slot_is_free_again_whatever_goes_wrong(
    federation: FederationFolder, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sender, sites = Updates(federation.folder), Sites(taken)
    with monkeypatch.context() as broken:
        broken.setattr(AtOnce, "__init__", lambda self, **_: setattr(self, "start", None))
        for _ in range(2 * updates.MAX_AT_ONCE):
            clock[0] += 60
            with pytest.raises(TypeError):
                sender.offer("oslo", "t", Heartbeat(certificate=OLD), sites)
    clock[0] += 60
    sender.offer("oslo", "t", Heartbeat(certificate=OLD), sites)
    assert len(sites.sent) == 1


def test_a_broken_half_of_an_update_does_not_keep_the_other_one(
    federation: FederationFolder, startup: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation.sign_revocations()
    sender = Updates(federation.folder)
    said = Heartbeat(certificate=OLD, revocations="other")
    path = federation.folder / "admitted" / "oslo.crt"
    path.write_text("-----BEGIN CERTIFICATE-----\n")
    assert list(sender.lacking("oslo", said)) == ["revocations"]
    assert "oslo.crt cannot be read" in caplog.text
    path.write_bytes(made("oslo"))
    (federation.folder / "revocations.json").write_text("{")
    assert list(sender.lacking("oslo", said)) == ["certificate"]
    # And at the site.
    answer = order(startup, {"certificate": made().decode(), "revocations": 7})
    assert "list of revocations is invalid" in answer
    assert certificates.days_left(certificates.read(startup / "client.crt")) == 299
    home = startup.parent.parent
    shown = Revocations.signed(1, ["oslo"], federation.folder / "ca" / "rootCA.key").table()
    answer = order(startup, {"certificate": "x", "revocations": shown})
    assert "not a renewal" in answer
    assert Revocations.read(home).names == ("oslo",)
    assert "expected a number" in (both := order(startup, {"certificate": "x", "revocations": {}}))
    assert "not a renewal" in both
    (startup / "client.crt").write_text("")
    assert updates.held(home) == ("", Revocations.read(home).digest)

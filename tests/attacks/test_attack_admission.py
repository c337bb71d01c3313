"""Whoever asks for admission to a federation: for a role that was not granted, or with a bomb.

A request states its role several times. FLARE signs the one in `cert_type`, and ignores
`participant_type`. A check that believes `participant_type` so takes a request for an operator's
certificate, whose owner may start jobs at every site, for a site's. All that stood in between was
the rule for names: FLARE wants an operator's to be an address, and ours has no @.
"""

from __future__ import annotations

import io
import json
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import certificates, kits, requests
from fedsight.deploy.membership import federation as federations
from fedsight.deploy.membership.federation import FederationFolder, Invitation
from fedsight.deploy.membership.requests import SigningRequest

MALLORY = "mallory@evil.example"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> FederationFolder:
    """A federation's folder with a real authority; it needs no server."""
    folder = tmp_path_factory.mktemp("federation") / "wards"
    kits.make_private(folder)
    fingerprint = kits.make_authority(folder, "wards", "localhost", 18999)
    (folder / "admitted").mkdir()
    return FederationFolder(folder, Invitation("wards", "localhost", 18999, fingerprint))


@pytest.fixture(scope="module")
def disguised(federation: FederationFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator's request that calls itself a site's."""
    folder = tmp_path_factory.mktemp("mallory")
    honest = kits.request(folder / "request", "wards", MALLORY, "lead")
    return repacked(honest, folder / "site.request.zip", participant_type="client")


def repacked(request: Path, path: Path, **facts: Any) -> Path:
    """A copy of a request with other facts."""
    with zipfile.ZipFile(request) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "request.json":
                data = json.dumps({**json.loads(data), **facts}).encode()
            new.writestr(name, data)
    return path


def naive_role(request: Path) -> str:
    """As it was: the role that a request seems to ask for."""
    with zipfile.ZipFile(request) as archive:
        facts = json.loads(archive.read("request.json"))
    return str(facts.get("participant_type") or facts.get("kind"))


def test_the_old_check_signed_an_operators_certificate_for_a_site(
    federation: FederationFolder, disguised: Path, tmp_path: Path
) -> None:
    assert naive_role(disguised) in ("client", "site")
    kits.approve(federation.folder, disguised, tmp_path / "signed.zip", 30)
    with zipfile.ZipFile(tmp_path / "signed.zip") as signed:
        facts = json.loads(signed.read("signed.json"))
        certificate = signed.read(f"{MALLORY}.crt")
    assert facts["cert_type"] == "lead"
    command = ["openssl", "x509", "-noout", "-subject"]
    subject = subprocess.run(command, input=certificate, capture_output=True, check=True).stdout
    assert b"lead" in subject


def test_such_a_request_is_refused(federation: FederationFolder, disguised: Path) -> None:
    with pytest.raises(DeployError, match=r"cannot be the name|request for the role 'lead'"):
        federation.admit(disguised)
    assert federation.admitted() == []


ROLES = st.sampled_from(
    ["site", "client", "user", "lead", "admin", "server", "project_admin", "", None, 0, [], {}]
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("kind", "cert_type"), ROLES)), ROLES)
def test_no_mixture_of_roles_is_a_sites(facts: dict[str, Any], claimed: Any) -> None:
    table = {"name": "ward", "participant_type": claimed, **facts}
    data = archive({"request.json": json.dumps(table).encode(), "site.yaml": b"", "ward.csr": b""})
    try:
        read(data)
    except DeployError:
        return
    assert (facts["kind"], facts["cert_type"], claimed) == ("site", "client", "client")


# Bombs --------------------------------------------------------------------------------------------


def archive(members: dict[str, bytes], **options: Any) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as new:
        for name, data in members.items():
            new.writestr(name, data)
    return file.getvalue()


def read(data: bytes) -> SigningRequest:
    class Memory(type(Path())):  # type: ignore[misc]
        def open(self, *_: Any, **__: Any) -> Any:
            return io.BytesIO(data)

    return SigningRequest.read(Memory("some.request.zip"))


def peak(do: Callable[[], object]) -> int:
    """Bytes allocated at once while `do` runs, which must fail with a DeployError."""
    tracemalloc.start()
    with pytest.raises(DeployError, match="is not a signing request"):
        do()
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found


def lying(data: bytes, size: int) -> bytes:
    """The archive, but its directory says that each member has `size` bytes."""
    changed, place = bytearray(data), data.find(b"PK\x01\x02")
    while place != -1:
        changed[place + 24 : place + 28] = size.to_bytes(4, "little")
        place = data.find(b"PK\x01\x02", place + 4)
    return bytes(changed)


BOMB = archive({"request.json": b" " * (60 << 20)}, compresslevel=9)


def test_without_a_bound_a_small_file_takes_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(BOMB) < 120_000
    monkeypatch.setattr(requests, "MAX_MEMBER_BYTES", 1 << 30)
    assert peak(lambda: read(BOMB)) > 60 << 20


@pytest.mark.parametrize(
    "data",
    [
        BOMB,
        lying(BOMB, 100),
        archive({f"{n}.csr": b"" for n in range(3000)}),
        archive({"request.json": b"[" * 60_000}),
        b"PK" * (1 << 20),
    ],
    ids=["a bomb", "a bomb that lies", "many files", "a deep nest", "a large file"],
)
def test_a_bomb_is_refused_before_it_unpacks(data: bytes) -> None:
    assert peak(lambda: read(data)) < 8 << 20


def test_a_request_that_changes_while_it_is_admitted_is_signed_as_it_was_checked(
    federation: FederationFolder, disguised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ward.request.zip"
    facts = {"name": "ward", "kind": "site", "cert_type": "client"}
    members = {"request.json": json.dumps(facts).encode(), "site.yaml": b"", "ward.csr": b"csr"}
    path.write_bytes(archive(members))
    signed: list[bytes] = []

    def approve(folder: Path, request: Path, answer: Path, days: int) -> None:
        path.write_bytes(disguised.read_bytes())  # now, between check and signature
        signed.append(request.read_bytes())
        answer.write_bytes(b"")

    monkeypatch.setattr(kits, "approve", approve)
    monkeypatch.setattr(certificates, "check_days", lambda authority, days: None)
    monkeypatch.setattr(federations, "certificate_in", lambda answer, name: b"")
    federation.admit(path)
    assert signed == [archive(members)] or b"ward.csr" in signed[0]
    assert MALLORY.encode() not in signed[0]


NAMES = st.one_of(st.sampled_from(["request.json", "site.yaml", "ward.csr", "../x", ""]), st.text())


@given(
    st.dictionaries(
        NAMES.filter(lambda n: n.isascii() and n[:1] not in ("", "\0")),
        st.binary(max_size=50),
        max_size=4,
    )
)
def test_any_archive_is_a_request_or_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(DeployError):
        read(archive(members))


@given(st.data())
def test_any_damage_is_a_deploy_error(data: st.DataObject) -> None:
    facts = {"name": "ward", "kind": "site", "cert_type": "client"}
    members = {"request.json": json.dumps(facts).encode(), "site.yaml": b"", "ward.csr": b"csr"}
    whole = bytearray(archive(members))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del whole[data.draw(st.integers(len(whole) // 2, len(whole))) :]
    try:
        found = read(bytes(whole))
    except DeployError:
        return
    assert requests._NAME.fullmatch(found.name)


INVITATION = """federation = "wards"
host = "localhost"
port = 8002
fingerprint = "SHA256:00"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"wards"', '"../../etc"'),
        ('"localhost"', r'"\u001b[2J"'),
        ('"localhost"', "7"),
        ('"localhost"', '"' + "a" * 300 + '"'),
        ("8002", '"8002"'),
        ("8002", "0"),
        ("8002", "true"),
        ('"SHA256:00"', "[]"),
        ("port", "extra = 1\nport"),
        ("port = 8002\n", ""),
        ("8002", "[" * 5000),
        ("8002", "8002 # " + "x" * 20_000),
    ],
)
def test_an_invitation_is_checked_before_it_is_used(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "invitation.toml"
    path.write_text(INVITATION)
    assert Invitation.read(path).port == 8002
    path.write_text(INVITATION.replace(old, new))
    with pytest.raises(DeployError):
        Invitation.read(path)

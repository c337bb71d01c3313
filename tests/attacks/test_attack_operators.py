"""An operator does what its certificate does not permit: it starts a job though it may only read,
though it was revoked, or in another operator's name; and a site starts one with its certificate.

All of them have FLARE's own tools and a kit, so nothing that our command line refuses stops them.
FLARE lets whoever has a certificate of the federation open a session, and looks at each folder of a
job alone: the signature over the whole of a job only says that it has a folder `config`, which is
the same for all jobs, so one operator's can stand before another's job.

With real processes: `tests/faults/test_faults_admission.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from authorities import authority as keys
from authorities import give, give_kit, show
from nvflare.fuel.f3.message import Message
from nvflare.fuel.hci.conn import Connection
from nvflare.fuel.hci.proto import InternalCommands
from nvflare.fuel.hci.reg import CommandModule, CommandModuleSpec, CommandSpec
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.login import LoginModule
from nvflare.fuel.hci.server.reg import CommandFilter, ServerCommandRegister
from nvflare.fuel.hci.server.sess import Session, SessionManager
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.private.fed.utils.identity_utils import IdentityAsserter
from signed_jobs import ARGUMENTS, JOB, OPERATOR, Authority, job, packed, sign, signed

from fedsight.core.errors import DeployError
from fedsight.deploy.flare import archives, components
from fedsight.deploy.flare.archives import check_archive
from fedsight.deploy.flare.launching import check_submitter
from fedsight.deploy.flare.reading import READERS, ReadersFilter
from fedsight.deploy.flare.routes import CERTIFIED, TO_SERVER, UPLOADS, Gate
from fedsight.deploy.membership import revocations
from fedsight.deploy.membership.kits import AUTHORITY_KEY
from fedsight.deploy.membership.operators import Permitted
from fedsight.deploy.membership.revocations import Revocations
from fedsight.deploy.site.enforcement import Requester
from fedsight.governance.contract import Contract

ANNA, BEN = "anna@lyon.example", "ben@oslo.example"
Signers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def root(authority: Authority, tmp_path: Path) -> Path:
    """The authority's certificate, as a site has it."""
    authority.write(tmp_path / "rootCA.pem")
    return tmp_path / "rootCA.pem"


# -- at a site: the signature decides, whatever the server lets through ----------------------------


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize(
    ("role", "name"), [("member", BEN), ("client", "ward"), ("server", "localhost")]
)
def test_a_site_follows_no_job_of_who_may_only_read_or_is_not_an_operator(
    authority: Authority,
    root: Path,
    tmp_path: Path,
    role: str,
    name: str,
    weak: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if weak:  # whoever the authority has certified
        monkeypatch.setattr(archives, "ROLE", role)
    archive = signed(job(tmp_path / "job"), authority, role, name)
    if weak:
        check_archive(archive, root)
        return
    with pytest.raises(ValueError, match=f"signed by {role}, not by an operator"):
        check_archive(archive, root)


@pytest.mark.parametrize("weak", [True, False])
def test_a_site_follows_no_job_of_a_revoked_operator(
    authority: Authority, root: Path, tmp_path: Path, weak: bool
) -> None:
    revoked: Collection[str] = () if weak else (ANNA, "oslo")
    archive = signed(job(tmp_path / "job"), authority, name=ANNA)
    if weak:
        check_archive(archive, root, revoked)
        return
    with pytest.raises(ValueError, match=f"signed by {ANNA}, who was revoked"):
        check_archive(archive, root, revoked)
    check_archive(signed(job(tmp_path / "other"), authority), root, revoked)


def disguised(authority: Authority, folder: Path) -> Path:
    """A job of ANNA's behind the signature over the whole of an earlier job of the operator's."""
    earlier, app = job(folder / "earlier"), job(folder / "job")
    sign(earlier, authority)
    sign(app, authority, name=ANNA)
    for name in (NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE):
        (app / name).write_bytes((earlier / name).read_bytes())
    return app


def any_of_them(files: dict[str, bytes], root: Path) -> Signers:
    """The weakened build: of several signers, the first one counts."""
    return UNCHANGED(files, root)[-1:]


UNCHANGED = archives._signers


@pytest.mark.parametrize("weak", [True, False])
def test_no_operator_signs_behind_anothers_name(
    authority: Authority, root: Path, tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = disguised(authority, tmp_path)
    if weak:
        monkeypatch.setattr(archives, "_signers", any_of_them)
        check_archive(packed(app), root)
        return
    with pytest.raises(ValueError, match="has to be signed by one operator"):
        check_archive(packed(app), root)


def any_lead(signers: Any) -> Requester:
    """The weakened build: whoever has signed a part of the job."""
    return Requester(tuple(sorted(name for name, _, role in signers if role == "lead")), "f")


@pytest.mark.parametrize("weak", [True, False])
def test_a_contract_that_names_one_operator_permits_no_job_of_another(
    authority: Authority, root: Path, tmp_path: Path, weak: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvflare.lighter.utils import verify_folder_signature_and_get_signers

    app, contract = disguised(authority, tmp_path), Contract(operators=(OPERATOR,))
    workspace = SimpleNamespace(
        get_app_dir=lambda number: str(app), get_file_path_in_startup=lambda name: str(root)
    )
    context = SimpleNamespace(get_job_id=lambda: JOB)
    here = SimpleNamespace(workspace=workspace, fl_ctx=context)
    monkeypatch.setattr(components, "collab", here)
    found = components.job_requester()
    if weak:
        genuine, signers = verify_folder_signature_and_get_signers(str(app), str(root))
        assert genuine
        found = any_lead(signers)
        contract.check_operators(found.operators)
        return
    assert found == Requester()
    with pytest.raises(DeployError, match="no operator has signed the job"):
        contract.check_operators(found.operators)
    sign(app, authority)  # the whole of it
    honest = components.job_requester()
    assert honest == Requester((OPERATOR,), str(ARGUMENTS["fingerprint"]))
    contract.check_operators(honest.operators)


def test_a_site_refuses_the_proposal_of_an_operator_on_the_list_that_comes_with_it(
    tmp_path: Path,
) -> None:
    """The job had started before the site was told."""
    give(tmp_path)
    show(tmp_path)
    shown = Revocations.signed(1, [ANNA], tmp_path / "ca" / AUTHORITY_KEY)
    revocations.check_operators(tmp_path, (ANNA,))
    revocations.accept(tmp_path, tmp_path / "kit" / "startup" / "rootCA.pem", shown.table())
    with pytest.raises(DeployError, match=f"operator '{ANNA}', who signed this job, was revoked"):
        revocations.check_operators(tmp_path, (ANNA,))
    revocations.check_operators(tmp_path, (OPERATOR,))
    assert keys("wards")


# -- at the server: who opens a session, and what is done in it ------------------------------------


class Commands(CommandModule):
    """A command of FLARE's that takes no right, and ours."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def get_spec(self) -> CommandModuleSpec:
        names = ("speed", "abort_job", "submit_job", "fedsight", "fedsight_ask")
        specs = [CommandSpec(name, "", "", self.do) for name in names]
        return CommandModuleSpec("all", specs)

    def do(self, connection: Connection, args: list[str]) -> None:
        """Note what was done."""
        self.done.append(args[0])


def may() -> dict[str, bool]:
    """The operators that the server knows: ANNA was revoked, BEN only reads."""
    return {OPERATOR: False, BEN: True}


class BySession(CommandFilter):
    """The weakened build: the role in the session decides, whoever is connected."""

    def pre_command(self, conn: Any, args: list[str]) -> bool:
        return args[0] in READERS or conn.get_prop(ConnProps.USER_ROLE) == "lead"


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("role", ["member", "client", "", "org_admin", "super", "lead"])
def test_who_may_only_read_gives_no_commands(role: str, weak: bool) -> None:
    register, commands = ServerCommandRegister(app_ctx=None), Commands()
    register.add_filter(CommandFilter() if weak else ReadersFilter(may))
    register.register_module(commands)
    register.finalize()
    asked = ["speed server server 1 64", "abort_job x", "submit_job x", "all.abort_job x"]
    asked += ["fedsight_ask stop 00", "all.fedsight_ask stop 00"]
    for words in (*asked, "fedsight status"):
        connection = Connection()
        request = Message({CERTIFIED: BEN})
        props = {ConnProps.USER_NAME: BEN, ConnProps.USER_ROLE: role, ConnProps.REQUEST: request}
        connection.set_props(props)
        register.process_command(connection, words)
    assert commands.done == ([*(w.split()[0] for w in asked), "fedsight"] if weak else ["fedsight"])


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> IdentityAsserter:
    """The server's, which signs the tokens of its sessions."""
    startup = give_kit(tmp_path_factory.mktemp("server"), "localhost", "server")
    return IdentityAsserter(str(startup / "client.key"), str(startup / "client.crt"))


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("connected", [BEN, OPERATOR])
def test_a_token_of_a_revoked_operator_is_of_no_use_over_anothers_connection(
    identity: IdentityAsserter, connected: str, weak: bool
) -> None:
    """FLARE signs a token when an operator logs in, and asks nothing but that signature later."""
    from test_attack_operator_session import SAID, said

    sessions = SessionManager(None)
    sessions.shutdown()
    old = Session("s", ANNA, "lyon", "lead", "", "default").make_token(identity)
    own = Session("t", connected, "oslo", "lead", "", "default").make_token(identity)
    gate = Gate("server", may)
    (command,) = [route for route in SAID if route.topic == "command"]

    def give_command(token: str, words: str) -> list[str]:
        register, commands = ServerCommandRegister(app_ctx=None), Commands()
        register.add_filter(LoginModule(sessions))
        register.add_filter(BySession() if weak else ReadersFilter(may))
        register.register_module(commands)
        register.finalize()
        message = said(command, connected)
        message.set_header(CERTIFIED, ANNA)  # the sender writes what it likes
        assert gate.refuse(message) is None
        connection = Connection()
        connection.request = {"data": [{"type": "token", "data": token}]}
        hci = SimpleNamespace(get_id_asserter=lambda: identity)
        # FLARE makes this of a stream's headers: its note of the certificate is gone.
        request = Message(message.headers)
        connection.set_props({ConnProps.HCI_SERVER: hci, ConnProps.REQUEST: request})
        register.process_command(connection, words)
        return commands.done

    assert give_command(old, "abort_job x") == (["abort_job"] if weak else [])
    assert give_command(old, "fedsight status") == (["fedsight"] if weak else [])
    assert give_command(own, "fedsight status") == ["fedsight"]
    assert give_command(own, "abort_job x") == (
        ["abort_job"] if weak or connected == OPERATOR else []
    )


@pytest.mark.parametrize("weak", [True, False])
def test_nobody_logs_in_with_a_certificate_that_is_not_the_connections(weak: bool) -> None:
    """FLARE has the name signed and nothing that changes, so a log-in can be said again."""
    decide = BySession() if weak else ReadersFilter(may)

    def logs_in(name: str, connected: str) -> bool:
        connection = Connection()
        connection.set_prop(ConnProps.REQUEST, Message({CERTIFIED: connected}))
        return bool(decide.pre_command(connection, [InternalCommands.CERT_LOGIN, name]))

    assert logs_in(OPERATOR, OPERATOR)
    assert logs_in(BEN, BEN)
    assert [logs_in(ANNA, BEN), logs_in(OPERATOR, BEN), logs_in(ANNA, ANNA)] == [weak] * 3


def test_a_jobs_files_come_without_a_request_and_from_who_may_start_jobs() -> None:
    """FLARE hands the command over without it; the gate hears files of no others."""

    def passes(name: str) -> bool:
        connection = Connection()
        connection.set_props({ConnProps.USER_NAME: name, ConnProps.USER_ROLE: "lead"})
        commands = (["submit_job", "x"], ["job_mgmt.submit_job", "x"])
        return all(bool(ReadersFilter(may).pre_command(connection, one)) for one in commands)

    assert [passes(OPERATOR), passes(ANNA), passes(BEN)] == [True, False, False]


LOGIN = [InternalCommands.CERT_LOGIN, OPERATOR]


@pytest.mark.parametrize("weak", [True, False])
@pytest.mark.parametrize("words", [["abort_job", "x"], ["fedsight_ask", "stop", "00"], LOGIN])
def test_with_a_jobs_files_comes_no_other_command(words: list[str], weak: bool) -> None:
    """FLARE hands it over without its connection, so another operator's token would do."""
    connection = Connection()
    connection.set_props({ConnProps.USER_NAME: OPERATOR, ConnProps.USER_ROLE: "lead"})
    decide = BySession() if weak else ReadersFilter(may)
    assert bool(decide.pre_command(connection, words)) is weak


def record(folder: Path, name: str, read_only: bool) -> None:
    """As an operator is recorded who was admitted."""
    (folder / "operators").mkdir(exist_ok=True)
    flag = str(read_only).lower()
    text = f'admitted = "2026"\nrequest = "x"\nread_only = {flag}\n'
    (folder / "operators" / f"{name}.toml").write_text(text)


def test_the_server_knows_operators_by_its_records_and_nobody_by_broken_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedsight.deploy.membership import operators

    monkeypatch.setattr(operators, "GLANCE", 0.0)
    permitted = Permitted(tmp_path)
    assert permitted() == {}
    record(tmp_path, ANNA, False)
    record(tmp_path, BEN, True)
    assert permitted() == {ANNA: False, BEN: True}
    (tmp_path / "revoked.json").write_text(f'{{"{ANNA}": "left"}}')
    assert permitted() == {BEN: True}
    (tmp_path / "revoked.json").write_text("{")
    assert permitted() == {}
    (tmp_path / "revoked.json").unlink()
    (tmp_path / "operators" / f"{ANNA}.toml").write_text('read_only = "no"\n')
    assert permitted() == {}
    assert "no operator may open a session" in caplog.text


@pytest.mark.parametrize("who", ["reader", "revoked", "site", "lead"])
def test_the_gate_passes_what_each_may_send(who: str) -> None:
    from test_attack_operator_session import said

    certified = {"reader": BEN, "revoked": "gone@oslo.example", "site": "ward", "lead": ANNA}[who]
    gate = Gate("server", lambda: {ANNA: False, BEN: True})
    routes = {route for route in TO_SERVER if route.origin == "operator"}
    passed = {route for route in routes if gate.refuse(said(route, certified)) is None}
    allowed = {"lead": routes, "reader": routes - UPLOADS}.get(who, set())
    assert UPLOADS
    assert passed == allowed


def test_a_job_that_waited_does_not_start_after_its_operator_was_revoked(tmp_path: Path) -> None:
    meta = {"submitter_name": ANNA}
    check_submitter(meta, tmp_path)
    (tmp_path / "revoked.json").write_text(f'{{"{ANNA}": "left"}}')
    with pytest.raises(RuntimeError, match=f"{ANNA}, who has submitted the job, was revoked"):
        check_submitter(meta, tmp_path)
    check_submitter({"submitter_name": OPERATOR}, tmp_path)

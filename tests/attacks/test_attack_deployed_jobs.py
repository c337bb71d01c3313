"""Who has the operator's key, or the authority's, runs code at a site or harms its kit by a job.

FLARE permits everything to a certificate with the role `super`, whatever `authorization.json` says.
It unpacks a job in place before it asks whether the job has code, and meanwhile the job can be
started. It unpacks it whatever its size before it looks for a signature, and replaces the folder
that bears the job's identifier, be it `startup` with the site's keys.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContextManager
from nvflare.fuel.sec.authz import AuthorizationService
from nvflare.private.admin_defs import Message as Order
from nvflare.private.defs import RequestHeader, TrainingTopic
from nvflare.private.fed.app.default_app_validator import DefaultAppValidator
from nvflare.private.fed.client import training_cmds
from nvflare.private.fed.client.client_engine import ClientEngine
from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
from nvflare.private.fed.client.scheduler_cmds import StartJobProcessor
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.private.scheduler_constants import ShareableHeader
from nvflare.security.security import FLAuthorizer
from signed_jobs import ARGUMENTS, JOB, Authority, job, packed, signed

from fedsight.deploy.flare.archives import check_archive
from fedsight.deploy.flare.launching import check_no_code
from fedsight.deploy.flare.orders import OrdersComponent
from fedsight.deploy.membership.kits import write_policies
from fedsight.deploy.membership.retention import Keep
from fedsight.deploy.server.job_definition import SERVER_CONFIG, SITE_CONFIG, server_config

BIG = 4 << 20  # bytes


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


class Site:
    """FLARE's process at a site with our policies; its orders are FLARE's until `limit`."""

    def __init__(self, kit: Path, authority: Authority) -> None:
        self.kit = kit
        (kit / "startup").mkdir(parents=True)
        authority.write(kit / "startup" / "rootCA.pem")
        write_policies(kit, "site")
        self.engine: Any = object.__new__(ClientEngine)
        self.engine.args = SimpleNamespace(workspace=str(kit))
        self.engine.client = SimpleNamespace(client_name="ward", components={})
        self.engine.fl_ctx_mgr = FLContextManager(engine=self.engine)
        self.running: list[str] = []
        self.engine.client_executor = SimpleNamespace(get_run_processes_keys=lambda: self.running)

    def limit(self) -> None:
        """As every site does before it registers."""
        OrdersComponent().handle_event(EventType.SYSTEM_BOOTSTRAP, SimpleNamespace())

    def order(self, topic: str, body: Any, job_id: Any = JOB, **meta: Any) -> str:
        """The answer to an order."""
        order = Order(topic, body)
        headers = {RequestHeader.JOB_ID: job_id, RequestHeader.APP_NAME: "app"}
        headers[ShareableHeader.RESOURCE_RESERVE_TOKEN] = "token"
        order.set_headers(
            {**headers, RequestHeader.JOB_META: {"job_id": job_id, "name": "first", **meta}}
        )
        return str(known(topic).process(order, self.engine).body)

    def deploy(self, archive: Any, job_id: Any = JOB, **meta: Any) -> str:
        return self.order(TrainingTopic.DEPLOY, archive, job_id, **meta)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.kit)) for path in self.kit.rglob("*"))


@pytest.fixture
def site(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path / "kit", authority)
    policy = json.loads((made.kit / "local" / "authorization.json").read_text())
    orders = list(ClientRequestProcessors.request_processors)
    monkeypatch.setattr(ClientRequestProcessors, "request_processors", orders)
    monkeypatch.setattr(AuthorizationService, "the_authorizer", FLAuthorizer("ward", policy))
    monkeypatch.setattr(AppAuthzService, "app_validator", DefaultAppValidator("client"))
    return made


def with_code(folder: Path) -> Path:
    app = job(folder)
    (app / "custom").mkdir()
    (app / "custom" / "evil.py").write_text("class Evil: pass\n")
    return app


def test_flare_accepts_code_that_the_authority_signs_as_super(
    site: Site, authority: Authority, tmp_path: Path
) -> None:
    app = with_code(tmp_path / "job")
    assert "BYOC not permitted" in site.deploy(signed(app, authority))
    assert "deployed" in site.deploy(signed(app, authority, "super"))
    assert f"{JOB}/app_ward/custom/evil.py" in site.files()
    meta = json.loads((site.kit / JOB / "meta.json").read_text())
    workspace = SimpleNamespace(
        get_app_custom_dir=lambda job: str(site.kit / job / "app_ward" / "custom")
    )
    with pytest.raises(RuntimeError, match="has code of its own"):  # our launcher does not start it
        check_no_code(meta, SimpleNamespace(get_prop=lambda _: workspace))


@pytest.mark.parametrize("role", ["super", "lead", "project_admin", ""])
def test_ours_refuses_code_whoever_signs_it_and_unpacks_nothing(
    site: Site, authority: Authority, tmp_path: Path, role: str
) -> None:
    site.limit()
    before = site.files()
    archive = signed(with_code(tmp_path / "job"), authority, role)
    assert "its files are not those of a job" in site.deploy(archive)
    assert site.files() == before


@pytest.mark.parametrize("role", ["super", "member", "project_admin", ""])
def test_only_an_operator_may_sign_even_an_honest_job(
    site: Site, authority: Authority, tmp_path: Path, role: str
) -> None:
    site.limit()
    assert "not by an operator" in site.deploy(signed(job(tmp_path / "job"), authority, role))
    other = signed(job(tmp_path / "other"), Authority())
    assert "signed by nobody" in site.deploy(other)


def test_an_honest_job_is_deployed_and_started_once(
    site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Order] = []

    def start(self: Any, order: Order, engine: Any) -> Order:
        started.append(order)
        return Order("", "started")

    monkeypatch.setattr(StartJobProcessor, "process", start)
    site.limit()
    archive = signed(job(tmp_path / "job"), authority)
    assert "was not accepted here" in site.order(TrainingTopic.START_JOB, {})
    assert "deployed" in site.deploy(archive)
    assert site.order(TrainingTopic.START_JOB, {}) == "started"
    assert "was not accepted here" in site.order(TrainingTopic.START_JOB, {})
    assert "exists already" in site.deploy(archive)
    assert len(started) == 1


def test_a_server_fills_neither_the_memory_nor_the_disk_with_jobs(
    site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an operator has signed is deployed again and again, under new identifiers."""
    archive = signed(job(tmp_path / "job"), authority)
    names = [f"{number:08x}{JOB[8:]}" for number in range(12)]
    Keep(jobs=3).write(site.kit)
    monkeypatch.setattr(StartJobProcessor, "process", lambda *_: Order("", "started"))

    def run(number: int) -> str:
        assert "deployed" in site.deploy(archive, names[number])
        said = site.order(TrainingTopic.START_JOB, {}, names[number])
        if said == "started":
            site.running.append(names[number])
        return said

    assert [run(number) for number in range(4)] == ["started"] * 4
    site.running.clear()  # FLARE keeps a folder of each and runs as many as it is told to
    assert sum(name in site.files() for name in names) == 4
    site.limit()
    answers = [run(number) for number in range(4, len(names))]
    assert answers == ["started"] * 8
    assert all(name in site.files() for name in site.running)
    assert sum(name in site.files() for name in names) == 8 + 3
    extra = f"{99:08x}{JOB[8:]}"
    assert "deployed" in site.deploy(archive, extra)
    assert "8 jobs are running here already" in site.order(TrainingTopic.START_JOB, {}, extra)
    site.running.pop()
    assert site.order(TrainingTopic.START_JOB, {}, extra) == "started"


def known(topic: str) -> Any:
    orders = ClientRequestProcessors.request_processors
    return next(one for one in orders if topic in one.get_topics())


def test_a_job_cannot_be_started_while_it_is_deployed(
    site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even for an honest one: with FLARE alone, what is being unpacked can be started."""
    site.limit()
    said: list[str] = []
    deploy = ClientEngine.deploy_app

    def slowly(self: Any, *args: Any, **named: Any) -> Any:
        answer = deploy(self, *args, **named)
        said.append(site.order(TrainingTopic.START_JOB, {}))
        return answer

    monkeypatch.setattr(ClientEngine, "deploy_app", slowly)
    assert "deployed" in site.deploy(signed(job(tmp_path / "job"), authority))
    assert "was not accepted here" in said[0]


def test_a_job_called_startup_removes_the_keys_with_flare_but_not_with_ours(
    site: Site, authority: Authority, tmp_path: Path
) -> None:
    archive = signed(job(tmp_path / "job"), authority)
    key = site.kit / "startup" / "client.key"
    key.write_text("the site's private key")
    kept = tmp_path / "kept"
    shutil.copytree(site.kit, kept)
    site.deploy(archive, "startup")
    assert not key.exists()

    shutil.rmtree(site.kit)
    kept.rename(site.kit)
    site.limit()
    for name in ("startup", "local", "../kit", ".", "", JOB + "/..", JOB.upper(), None, [JOB], 7):
        assert "not the identifier of a job" in site.deploy(archive, name)
    assert key.read_text() == "the site's private key"


def test_an_unsigned_archive_is_unpacked_by_flare_but_not_by_ours(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = job(tmp_path / "job")
    (app / "zeros").write_bytes(bytes(BIG))
    archive = packed(app, zipfile.ZIP_DEFLATED)
    assert len(archive) < BIG // 100
    unpacked: list[int] = []
    unzip = training_cmds.unzip_all_from_bytes

    def measured(data: bytes, folder: str) -> None:
        unzip(data, folder)
        unpacked.append(sum(one.stat().st_size for one in Path(folder).rglob("*")))

    monkeypatch.setattr(training_cmds, "unzip_all_from_bytes", measured)
    assert "unsigned" in site.deploy(archive)
    assert unpacked[0] >= BIG

    site.limit()
    assert "not a job's archive" in site.deploy(archive)
    assert len(unpacked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"launcher_spec": {"default": {"docker": {"image": "evil"}}}},
        {"scope": "public"},
        {"byoc": True},
        {"custom_props": {}},
        {"resource_spec": {"ward": {"num_of_gpus": 1}}},
        {"name": "x" * (2 << 20)},
    ],
)
def test_a_description_that_is_not_one_of_ours_is_refused(
    site: Site, authority: Authority, tmp_path: Path, change: dict[str, Any]
) -> None:
    site.limit()
    before = site.files()
    said = site.deploy(signed(job(tmp_path / "job"), authority), **change)
    assert "refused by the site" in said
    assert "description" in said
    assert site.files() == before


# -- the archive -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Path]:
    """The archive of an honest job, and the authority's certificate."""
    folder = tmp_path_factory.mktemp("honest")
    authority.write(folder / "rootCA.pem")
    return signed(job(folder / "job"), authority), folder / "rootCA.pem"


def test_an_honest_archive_is_accepted(honest: tuple[bytes, Path]) -> None:
    check_archive(*honest)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (SITE_CONFIG, "SiteComponent", "ServerLauncher"),
        (SITE_CONFIG, "nvflare.collab.runtime.executor.CollabExecutor", "subprocess.Popen"),
        (SERVER_CONFIG, "CoordinatorComponent", "SiteComponent"),
        (SERVER_CONFIG, '"task_data_filters": []', '"task_data_filters": [1]'),
        (SERVER_CONFIG, f'"number": {ARGUMENTS["number"]}', '"number": "7"'),
        (SERVER_CONFIG, f'"number": {ARGUMENTS["number"]}', '"number": true'),
        (SERVER_CONFIG, f'"number": {ARGUMENTS["number"]}', '"number": 7, "more": 1'),
    ],
)
def test_another_configuration_is_refused_though_an_operator_signed_it(
    authority: Authority, honest: tuple[bytes, Path], tmp_path: Path, file: str, old: str, new: str
) -> None:
    app = job(tmp_path / "job")
    path = app / "config" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match="is not the one that this version of FedSight writes"):
        check_archive(signed(app, authority), honest[1])


def test_a_compressed_or_repeated_file_is_refused(
    authority: Authority, honest: tuple[bytes, Path], tmp_path: Path
) -> None:
    app = job(tmp_path / "job")
    signed(app, authority)
    with pytest.raises(ValueError, match="compressed"):
        check_archive(packed(app, zipfile.ZIP_DEFLATED), honest[1])
    twice = tmp_path / "twice.zip"
    twice.write_bytes(honest[0])
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(twice, "a") as archive,
    ):
        archive.writestr(f"config/{SERVER_CONFIG}", server_config({**ARGUMENTS, "run": "other"}))
    with pytest.raises(ValueError, match="its files are not those of a job"):
        check_archive(twice.read_bytes(), honest[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_archive_is_refused_or_still_says_the_same(
    honest: tuple[bytes, Path], data: st.DataObject
) -> None:
    whole = bytearray(honest[0])
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_archive(bytes(whole), honest[1])
    except ValueError:
        return
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.read(f"config/{SERVER_CONFIG}") == server_config(dict(ARGUMENTS))


@pytest.mark.parametrize("data", [None, "text", b"", b"PK", {}, bytes(100_000)])
def test_what_is_not_an_archive_is_refused(honest: tuple[bytes, Path], data: Any) -> None:
    with pytest.raises(ValueError, match="archive"):
        check_archive(data, honest[1])

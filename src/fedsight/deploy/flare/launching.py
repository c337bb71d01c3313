"""Starts the processes of jobs as FLARE would, but forked from the prefork process."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import (
    JOB_RETURN_CODE_MAPPING,
    ProcessJobLauncher,
)
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.utils.job_launcher_utils import get_credential_env

from fedsight.core.errors import EngineError
from fedsight.core.text import printable
from fedsight.deploy.membership.kits import JOB_ID
from fedsight.deploy.membership.operators import read_revoked
from fedsight.deploy.processes import spawn
from fedsight.deploy.processes.supervisor import FLARE_ENTRY

log = logging.getLogger(__name__)


class _JobProcess(JobHandleSpec):
    """FLARE's handle on a job's process."""

    def __init__(self, process: spawn.Process) -> None:
        self._process = process

    def poll(self) -> Any:
        """How the process ended, or that it runs, as FLARE's return code."""
        code = self._process.poll()
        if code is None:
            return JobReturnCode.UNKNOWN
        return JOB_RETURN_CODE_MAPPING.get(code, JobReturnCode.EXECUTION_ERROR)

    def terminate(self) -> None:
        """Kill the process; its trainer ends with it."""
        self._process.kill()

    def wait(self) -> None:
        """Wait until the process has ended."""
        self._process.wait()


def check_no_code(job_meta: dict[str, Any], fl_ctx: FLContext) -> None:
    """Raise RuntimeError if a job has code of its own, or an identifier that FLARE does not make.

    FLARE has asked whether its submitter may bring code, but permits everything to a certificate
    with the role `super`, whatever `authorization.json` says.
    """
    job = job_meta.get(JobMetaKey.JOB_ID)
    if not isinstance(job, str) or not JOB_ID.fullmatch(job):
        raise RuntimeError(f"'{printable(job, 80)}' cannot be the identifier of a job")
    workspace: Any = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
    if job_meta.get(AppValidationKey.BYOC) or Path(workspace.get_app_custom_dir(job)).exists():
        raise RuntimeError(f"job {job} has code of its own, which never runs here")


def check_submitter(job_meta: dict[str, Any], federation: Path) -> None:
    """Raise RuntimeError if the operator who has submitted a job was revoked while it waited."""
    name = str(job_meta.get(JobMetaKey.SUBMITTER_NAME))
    if name in read_revoked(federation):
        raise RuntimeError(f"{printable(name, 80)}, who has submitted the job, was revoked")


class _Launcher(ProcessJobLauncher):
    """Starts the process of a job as FLARE would, but forked from the prefork process."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """Called by FLARE to start a job; RuntimeError if the job has code of its own."""
        check_no_code(job_meta, fl_ctx)
        credentials = get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {})
        command = shlex.split(self.get_command(job_meta, fl_ctx))
        module, *arguments = command[command.index("-m") + 1 :]
        return _JobProcess(
            spawn.start(FLARE_ENTRY, [module, *arguments], 1, environment=credentials)
        )


class _NotStarted(JobHandleSpec):
    """FLARE's handle on a process that could not be started, as on one that has ended."""

    def poll(self) -> Any:
        """FLARE's return code of a process that has failed."""
        return JobReturnCode.EXECUTION_ERROR

    def terminate(self) -> None:
        """There is nothing to end."""

    def wait(self) -> None:
        """There is nothing to wait for."""


class SiteLauncher(_Launcher, ClientProcessJobLauncher):
    """Starts jobs at a site."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """As at the server. A process that cannot be started, for want of memory for example, is
        lost like one that dies: with any other answer FLARE would end the job for all sites."""
        try:
            return super().launch_job(job_meta, fl_ctx)
        except EngineError as error:
            log.error("%s", error)
            return _NotStarted()


class ServerLauncher(_Launcher, ServerProcessJobLauncher):
    """Starts jobs at the server."""

    def launch_job(self, job_meta: dict[str, Any], fl_ctx: FLContext) -> JobHandleSpec:
        """As at a site; RuntimeError also if the job's submitter was revoked."""
        check_submitter(job_meta, Path(os.environ["FEDSIGHT_HOME"]).parent)
        return super().launch_job(job_meta, fl_ctx)

"""The process at the server that carries a run that an operator asked for from another machine.

    python -m fedsight.cli.carrying FOLDER

It says what `fedsight run` says, and signs nothing: see `deploy/server/remote_runs.py`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from fedsight.cli.screen import show_error
from fedsight.cli.train import Target, carry_on, deploy, read_program
from fedsight.core.errors import DeployError, FedSightError, Interrupted
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.server.remote_runs import PROGRAM, RemoteRun, run_folder
from fedsight.language.current import using
from fedsight.program.program import Program


def carry(remote: RemoteRun) -> None:
    """Carry the run to its end."""
    asked = remote.asked
    federation = replace(FederationFolder.open(remote.federation), signer=remote)
    program, speed = read_program(remote.folder / PROGRAM, None, [], None)
    _require(program, asked.fingerprint)
    if not (name := asked.resume):
        deploy(federation, program, speed, Target(None, False), None)
        return
    from fedsight.coordinator.store import RunStore

    store = RunStore(run_folder(federation, name))
    _require(store.program()[0], asked.fingerprint)
    carry_on(federation, store, None)


def _require(program: Program, fingerprint: str) -> None:
    """Raise DeployError for another program than the operator's machine has in mind."""
    if program.fingerprint != fingerprint:
        cause = "this is not the program that was asked for, as the coordinator's machine reads it"
        raise DeployError(cause, "use the same version of FedSight, and the same config, on both")


def main() -> None:
    """Entry point; the exit code is that of `fedsight run`, and is written down."""
    remote, code = RemoteRun(Path(sys.argv[1])), 1
    with remote.exclusive(), using("zh" if remote.asked.language == "zh" else "en"):
        try:
            carry(remote)
            code = 0
        except FedSightError as error:
            show_error(error)
            code = error.exit_code
        except KeyboardInterrupt:
            code = Interrupted.exit_code
        finally:
            remote.end(code)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()

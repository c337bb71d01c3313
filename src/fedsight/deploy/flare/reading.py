"""What operators see of a federation from other machines, and ask of its runs.

FLARE lets every session use commands that take no right: one has the server allocate as much as it
is told. So a session of an operator who only reads can log in, read, and log out. And FLARE ties a
session to no connection: whoever has another operator's certificate or token could use it over
their own. So a session's name has to be the one in the certificate of the connection.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nvflare.fuel.hci.proto import InternalCommands
from nvflare.fuel.hci.reg import CommandModule, CommandModuleSpec, CommandSpec
from nvflare.fuel.hci.server import hci
from nvflare.fuel.hci.server.constants import ConnProps
from nvflare.fuel.hci.server.reg import CommandFilter

from fedsight.core.errors import FedSightError
from fedsight.deploy.flare.routes import CERTIFIED
from fedsight.deploy.membership.federation import FederationFolder

COMMAND = "fedsight"  # reads
ASK = "fedsight_ask"  # asks for a run, or a run to pause or to stop: not for who only reads
READERS = frozenset(
    {
        *(COMMAND, InternalCommands.CERT_LOGIN, InternalCommands.LOGOUT),
        *(InternalCommands.CHECK_SESSION, InternalCommands.GET_CMD_LIST),
    }
)
SUBMIT = "submit_job"  # the one command that comes with files
MAX_ARGUMENT = 512  # hexadecimal digits of a run's name
MAX_ASKED = 512 << 10  # hexadecimal digits of a program


class ReadersFilter(CommandFilter):
    """Refuses commands in sessions of other operators than the connection's, and every command but
    those of READERS to who may only read."""

    def __init__(self, operators: Callable[[], Mapping[str, bool]]) -> None:
        """`operators`: who may open sessions now, and whether only to read."""
        self._operators = operators

    def pre_command(self, conn: Any, args: list[str]) -> bool:
        """Called by FLARE before a command, once it knows whose session it is."""
        if args[0] == InternalCommands.CHECK_SESSION:  # comes before that, and shows nothing of it
            return True
        name = conn.get_prop(ConnProps.USER_NAME)
        if args[0] == InternalCommands.CERT_LOGIN:  # there is no session yet
            name = args[1] if len(args) == 2 else None
        # A command that comes with files has no request, and could be of anybody's session. The
        # gate lets only those send files who may start jobs, and a job says who has signed it.
        request = conn.get_prop(ConnProps.REQUEST)
        if request is None:
            own = args[0].rpartition(".")[2] == SUBMIT
        else:
            own = request.get_header(CERTIFIED) == name
        reads = self._operators().get(str(name)) if own else None
        if reads is None:
            conn.append_error("this is not the session of an operator who is connected")
            return False
        if args[0] in READERS or not reads:
            return True
        conn.append_error("this operator may only read")
        return False


class Reading(CommandModule):
    """The command that reads, `fedsight WHAT [RUN]`, and the one that asks, `fedsight_ask WHAT
    WORD...`; a run's name and other words in hexadecimal digits."""

    def __init__(self, federation: Path) -> None:
        self._federation = federation
        self._lock = threading.Lock()  # one at a time: the server has more to do

    def get_spec(self) -> CommandModuleSpec:
        """What FLARE registers."""
        read = f"{COMMAND} WHAT [RUN]", self.read
        ask = f"{ASK} WHAT WORD...", self.ask
        specs = [
            CommandSpec(COMMAND, "read the state of the federation", *read),
            CommandSpec(ASK, "ask for a run, or one to pause or to stop", *ask),
        ]
        return CommandModuleSpec(COMMAND, specs)

    def read(self, conn: Any, args: list[str]) -> None:
        """Called by FLARE with the command; the answer is JSON, or has an `error`."""
        from fedsight.deploy.server.views import OWN, own_certificate, view

        def answer(federation: FederationFolder, operator: str, *words: str) -> str:
            if words == (OWN,):
                return own_certificate(federation, operator)
            return view(federation, *words)

        self._answer(conn, args, answer, MAX_ARGUMENT)

    def ask(self, conn: Any, args: list[str]) -> None:
        """The same, with the command that asks."""
        from fedsight.deploy.server.views import ask

        self._answer(conn, args, ask, MAX_ASKED)

    def _answer(self, conn: Any, args: list[str], answered: Callable[..., str], most: int) -> None:
        try:
            if any(len(one) > most for one in args):
                raise ValueError("too long")
            what, *run = args[1:]
            names = [bytes.fromhex(one).decode("utf-8") for one in run]
            federation = FederationFolder.open(self._federation)
            with self._lock:
                operator = str(conn.get_prop(ConnProps.USER_NAME))
                answer = answered(federation, operator, what, *names)
        except FedSightError as error:
            answer = json.dumps({"error": [error.cause, error.cure]})
        except ValueError:
            answer = json.dumps({"error": ["this is not a view", "update this machine"]})
        conn.append_string(answer)


def install(federation: Path, operators: Callable[[], Mapping[str, bool]]) -> None:
    """Have FLARE's server in this process offer the command, and limit sessions as `ReadersFilter`
    does, from the first one on."""
    begin = hci.AdminServer.__init__

    def limited(self: Any, cell: Any, cmd_reg: Any, *args: Any, **named: Any) -> None:
        if cmd_reg is not None:  # None: no sessions at all
            cmd_reg.register_module(Reading(federation))
            # Behind the first one, which knows whose session it is.
            cmd_reg.filters.insert(1, ReadersFilter(operators))
        begin(self, cell, cmd_reg, *args, **named)

    hci.AdminServer.__init__ = limited

"""The process that holds one operator session with the server; `operator.py` starts it.

Its arguments are a kit, a user, and the descriptor of a socket. It reports there whether the server
accepts the user, then answers calls, one line of JSON each, until the other end is closed.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from nvflare.fuel.flare_api.flare_api import new_secure_session
from nvflare.fuel.hci.client import api
from nvflare.private.fed.authenticator import Authenticator

from fedsight.deploy.flare.bounds import set_bounds

ALLOWED_CALLS = ("submit_job", "get_job_meta", "list_jobs", "abort_job", "disable_client")
# The commands of `deploy/flare/reading.py`, which the process of a session need not load.
OWN_COMMANDS = {"view": "fedsight", "ask": "fedsight_ask"}
LOGIN_TIMEOUT = 5.0  # seconds
RETRY_INTERVAL = 0.1  # seconds


def impatient(*given: Any, **named: Any) -> Authenticator:
    """What asks the server who it is, and asks again soon: the first question comes before there is
    a connection, which takes milliseconds, and FLARE waits for a whole second then."""
    return Authenticator(*given, **{**named, "retry_interval": RETRY_INTERVAL})


def answer_to(session: Any, command: str, what: str, *run: str) -> Any:
    """What the server answers to one of our own commands, as plain values."""
    words = [command, what, *(name.encode("utf-8").hex() for name in run)]
    answer = session.api.server_execute(" ".join(words))
    texts = [one.get("data") for one in answer.get("data") or [] if one.get("type") == "string"]
    if not texts:
        raise ValueError(f"the server did not answer: {str(answer)[:200]}")
    return json.loads("".join(map(str, texts)))


def serve(kit: str, user: str, calls: Iterable[str], answers: TextIO) -> None:
    """Open a session and answer the calls."""

    def send(**answer: Any) -> None:
        print(json.dumps(answer, default=str), file=answers, flush=True)

    set_bounds()
    api.Authenticator = impatient
    try:
        session = new_secure_session(username=user, startup_kit_location=kit, timeout=LOGIN_TIMEOUT)
    except Exception as error:  # FLARE does not document which exceptions it raises
        send(error=str(error))
        return
    send(answer=None)
    for line in calls:
        name, arguments = json.loads(line)
        try:
            if name in OWN_COMMANDS:
                send(answer=answer_to(session, OWN_COMMANDS[name], *arguments))
                continue
            if name not in ALLOWED_CALLS:
                raise ValueError(f"unknown call {name}")
            send(answer=getattr(session, name)(*arguments))
        except Exception as error:
            send(error=str(error))
    session.close()


if __name__ == "__main__":
    kit, user, descriptor = sys.argv[1:]
    # FLARE searches the working directory, and all folders in it, for settings of connections: a
    # home with many files takes minutes, and what somebody has downloaded there would count.
    os.chdir(kit)
    with socket.socket(fileno=int(descriptor)) as connection:
        calls = connection.makefile("r", encoding="utf-8")
        answers = connection.makefile("w", encoding="utf-8")
        try:
            serve(kit, user, calls, answers)
        finally:
            sys.stderr.flush()
            os._exit(0)  # without waiting for FLARE's threads

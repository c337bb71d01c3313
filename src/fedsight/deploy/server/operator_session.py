"""The process that holds one session of an operator with the server; see `operator.py`.

Run with a kit and a user. Says whether it is let in, then answers calls, one JSON line each, until
its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

from nvflare.fuel.flare_api.flare_api import new_secure_session

CALLS = ("submit_job", "get_job_meta", "abort_job", "disable_client")
PATIENCE = 5.0  # seconds that the server gets to let the user in


def serve(kit: str, user: str, say: TextIO) -> None:
    """Open a session and answer calls."""

    def tell(**said: Any) -> None:
        print(json.dumps(said, default=str), file=say, flush=True)

    try:
        session = new_secure_session(username=user, startup_kit_location=kit, timeout=PATIENCE)
    except Exception as error:  # FLARE raises what it likes
        tell(error=str(error))
        return
    tell(answer=None)
    for line in sys.stdin:
        name, words = json.loads(line)
        try:
            if name not in CALLS:
                raise ValueError(f"unknown call {name}")
            tell(answer=getattr(session, name)(*words))
        except Exception as error:
            tell(error=str(error))
    session.close()


if __name__ == "__main__":
    kit, user = sys.argv[1:]
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # FLARE prints as it likes
        try:
            serve(kit, user, answers)
        finally:
            sys.stderr.flush()
            os._exit(0)  # FLARE's threads take their time

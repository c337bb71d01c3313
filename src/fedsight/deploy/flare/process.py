"""The entry of every FLARE process: sets the limits that FLARE lacks, spares it work that changes
nothing (`copies.py`) and waiting (`waits.py`), then runs FLARE's own module.

    python -m fedsight.deploy.flare.process MODULE ARGUMENTS...

The limits hold before the process has its first connection. Each replaces something of FLARE's by
its name. If FLARE no longer has it, the process ends with an error: it never runs without them.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from nvflare.fuel.f3.cellnet import cell, core_cell
from nvflare.fuel.f3.drivers import socket_conn
from nvflare.fuel.f3.streaming import blob_streamer
from nvflare.fuel.sec import audit
from nvflare.fuel.utils.fobs import datum

from fedsight.deploy.flare import copies, reading, waits
from fedsight.deploy.flare.bounds import replace, set_bounds
from fedsight.deploy.flare.records import BoundedAuditor
from fedsight.deploy.flare.routes import SERVER, Gate
from fedsight.deploy.flare.traffic import Meter
from fedsight.deploy.membership.operators import Permitted


def set_limits() -> None:
    """Set them in this process; AttributeError if this version of FLARE has no such name."""
    set_bounds()
    # FLARE ends a job's process at the server when a stream is too large, or cannot be decoded, or
    # a site says so. Then the stream alone fails, as it does elsewhere.
    replace(cell, "_is_server_job_cell", _never)
    replace(audit, "Auditor", BoundedAuditor)
    replace(blob_streamer, "ConsumableBufferList", copies.Chunks)
    # Larger values are written as they are, behind the message that they belong to.
    replace(datum, "TEN_MEGA", copies.LARGE)
    copies.spare_copies()
    home = os.environ.get("FEDSIGHT_HOME")
    permitted = Permitted(Path(home).parent) if home else dict
    if home:
        reading.install(Path(home).parent, permitted)
    begin = core_cell.CoreCell.start

    def start(self: Any) -> None:
        """Check all messages, and only then connect."""
        self.add_incoming_filter("*", "*", Gate(self.my_info.fqcn, permitted).refuse)
        if self.my_info.fqcn == SERVER and home:
            meter = Meter()
            _measure(meter)
            meter.keep_writing(Path(home))
        begin(self)

    core_cell.CoreCell.start = start


def _measure(meter: Meter) -> None:
    """Have the meter watch each connection as long as it is read."""
    kind = socket_conn.SocketConnection
    read, close = kind.read_loop, kind.close

    def read_loop(self: Any) -> None:
        with meter.watching(self):
            read(self)

    def closed(self: Any) -> None:
        meter.look(self)
        close(self)

    kind.read_loop, kind.close = read_loop, closed


def _never(info: object) -> bool:
    return False


if __name__ == "__main__":
    set_limits()
    sys.argv = sys.argv[1:]
    waits.shorten(sys.argv[0])
    sys.modules.pop(sys.argv[0], None)  # the prefork process has imported it; it runs again
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

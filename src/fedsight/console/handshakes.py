"""TLS handshakes of a console: each is a connection that is held, and has to be done soon.

With TLS in the hands of asyncio, a connection is heard of only once its handshake is complete, and
those of whoever connects and says nothing are not counted at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, cast

from fedsight.console.certificate import Certificate
from fedsight.console.sessions import Holder

GOODBYE = 1.0  # seconds in which a browser may agree that a connection is closed
log = logging.getLogger(__name__)


class Held(Protocol):
    """A connection that may have to give way to another one."""

    transport: asyncio.Transport
    made: float

    @property
    def holder(self) -> Holder | None:
        """Whose session it is one of."""


class Handshake(asyncio.Protocol):
    """A connection until its handshake is complete; what `make` makes takes it over then."""

    holder = None

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        connections: set[Any],
        certificate: Certificate,
        patience: float,
        make_room: Callable[[], None],
    ) -> None:
        self._make, self._connections = make, connections
        self._certificate, self._patience = certificate, patience
        self._make_room = make_room
        self._early = b""  # what came before the connection was taken over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the handshake."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()  # until TLS reads
        loop = asyncio.get_running_loop()
        self.made = loop.time()
        self._connections.add(self)
        self._make_room()
        self._task = loop.create_task(self._shake_hands(loop))

    def data_received(self, data: bytes) -> None:
        """The beginning of a request, in one packet with the end of the handshake."""
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:
        """It ended before it was taken over."""
        self._connections.discard(self)
        self._task.cancel()

    def shutdown(self) -> None:
        """The console ends."""
        self.transport.abort()
        self._connections.discard(self)
        self._task.cancel()

    async def _shake_hands(self, loop: asyncio.AbstractEventLoop) -> None:
        plain = self.transport
        try:
            secured = await loop.start_tls(
                plain,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=self._patience,
                ssl_shutdown_timeout=GOODBYE,
            )
        except (OSError, ValueError) as error:  # what is not TLS, a certificate that is not known
            log.debug("no handshake: %s", error)
            plain.abort()
            self._connections.discard(self)
            return
        self._connections.discard(self)
        if secured is None or secured.is_closing():
            plain.abort()
            return
        taken = self._make()
        taken.connection_made(secured)
        secured.set_protocol(taken)
        if self._early:
            taken.data_received(self._early)

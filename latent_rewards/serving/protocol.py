"""HTTP/1.1 as uvicorn speaks it, without a traceback for what a client does wrong."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Http(H11Protocol):
    """A client that sends no HTTP any more, be it while it is answered, has left, as far as its request goes."""

    def send_400_response(self, msg: str) -> None:
        """Answer 400, unless an answer is under way, and close the connection."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()
        if self.cycle is not None:
            self.cycle.message_event.set()

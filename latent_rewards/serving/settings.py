"""What a judge server is told at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ROUTES = (
    "/score", "/read", "/generate", "/get_reward", "/remote_rm", "/llama_factory", "/classify", "/metrics", "/info",
)  # fmt: skip
"""Those that want the token where there is one."""


@dataclass(frozen=True)
class ServeSettings:
    """Limits and security of a judge server.

    Attributes:
        token: bearer token that every request but /health and /ready must carry; None for none.
        url_token: take the token as `?token=` of the URL, too, for stacks that can send no header.
        open_routes: those of `ROUTES` that need no token, whoever reaches the server.
        end_tokens: what the routes of other stacks cut from the end of completions; None for those that
            $LATENT_REWARDS_END_TOKENS names, or the usual ones.
        log_requests: write a line for each request: route, status, seconds; never what was asked.
        max_batch_rows: most rows that are judged together when they come from several requests.
        linger: seconds without a new request after which a free judge goes to work; see `batching.wait_until`.
        max_queue_rows: most rows that wait; more are refused with 429.
        max_rows: most rows of one request.
        max_body_bytes: most bytes of a request body, chunked or not.
        max_text_chars: most characters of one text.
        body_timeout: seconds within which a request body must have arrived.
        deadline: seconds within which a request is answered, unless it asks for less.
        mix: False judges every request by itself, so that a score never depends on other clients' rows (by rounding).
        any_prompt: whether clients may send judge prompts of their own (templates without loops, calls and filters).
        threads: torch threads of each judge; None leaves torch's own choice, divided among the judges.
    """

    token: str | None = None
    url_token: bool = False
    open_routes: Sequence[str] = ()
    end_tokens: Sequence[str] | None = None
    log_requests: bool = False
    max_batch_rows: int = 256
    linger: float = 0.005
    max_queue_rows: int = 16_384
    max_rows: int = 2048
    max_body_bytes: int = 32 << 20
    max_text_chars: int = 400_000
    body_timeout: float = 60.0
    deadline: float = 600.0
    mix: bool = True
    any_prompt: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_batch_rows", "max_queue_rows", "max_rows", "max_body_bytes", "max_text_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("body_timeout", "deadline"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive seconds, got {getattr(self, name)}")
        if self.linger < 0:
            raise ValueError(f"linger must not be negative, got {self.linger}")
        if self.token is not None and (not self.token or not self.token.isascii() or self.token != self.token.strip()):
            raise ValueError("the token must be ASCII text without spaces around it, and not empty")
        for route in self.open_routes:
            if route not in ROUTES:
                raise ValueError(f"open_routes: there is no route {route!r}; allowed are {', '.join(ROUTES)}")
        if isinstance(self.end_tokens, str):
            raise ValueError(f"end_tokens is a list of texts, got {self.end_tokens!r}")
        for token in self.end_tokens or ():
            if not token or token != token.strip():
                raise ValueError(f"end_tokens are texts without blanks around them, got {token!r}")

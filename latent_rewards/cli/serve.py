"""The command line's `serve`: a judge behind HTTP, for every rank and every stack."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from latent_rewards.cli import options
from latent_rewards.cli.errors import user_errors

if TYPE_CHECKING:
    from latent_rewards.files.types import JsonObject
    from latent_rewards.serving.service import Service
    from latent_rewards.serving.settings import ServeSettings

TOKEN = "LATENT_REWARDS_TOKEN"
logger = logging.getLogger(__name__)


@options.takes(options.REWARDS, {name: of for name, of in options.JUDGE.items() if name != "device"})
def serve(
    ctx: typer.Context,
    device: Annotated[
        list[str] | None, typer.Option(help="Such as cuda:1; repeat it for one replica per device behind one port.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML with 'judge' and 'rewards'; what flags say comes first.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8077,
    token_file: Annotated[Path | None, typer.Option(help=f"File with the bearer token; else ${TOKEN}.")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Listen beyond loopback without a token.")] = False,
    url_token: Annotated[
        bool,
        typer.Option("--url-token", help="Take the token as ?token= of the URL, too; it may end in proxies' logs."),
    ] = False,
    open_route: Annotated[
        list[str] | None,
        typer.Option(help="Route that needs no token, such as /remote_rm, whoever reaches it; may be repeated."),
    ] = None,
    end_tokens: Annotated[
        str | None,
        typer.Option(
            help="End tokens of the policy that routes of other stacks cut from completions, with blanks between; "
            "empty for none; else $LATENT_REWARDS_END_TOKENS, else those of the usual families."
        ),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Write a line for each request: route, status, seconds.")
    ] = False,
    max_batch_rows: Annotated[int, typer.Option(help="Most rows of several requests judged together.")] = 256,
    linger_ms: Annotated[float, typer.Option(help="How long a free judge waits for company.")] = 5.0,
    max_queue_rows: Annotated[int, typer.Option(help="More waiting rows are refused with 429.")] = 16_384,
    max_rows: Annotated[int, typer.Option(help="Most rows of one request.")] = 2048,
    max_body_mb: Annotated[float, typer.Option(help="Largest request body.")] = 32.0,
    max_text_chars: Annotated[int, typer.Option(help="Longest text.")] = 400_000,
    body_timeout: Annotated[float, typer.Option(help="Seconds for a request body to arrive.")] = 60.0,
    deadline: Annotated[float, typer.Option(help="Seconds within which a request is answered.")] = 600.0,
    no_mix: Annotated[
        bool, typer.Option("--no-mix", help="Never judge requests of several clients together: same rows, same bits.")
    ] = False,
    own_prompts_only: Annotated[
        bool, typer.Option("--own-prompts-only", help="Refuse judge prompts that clients send.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="Torch threads per judge.")] = None,
) -> None:
    """Serve a judge over HTTP: /score, /get_reward (OpenRLHF), /remote_rm (slime), /classify (verl), /metrics."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with user_errors():
        settings = _settings(ctx)
        if settings.token is None and not no_token and not _is_loopback(host):
            raise ValueError(
                f"{host} can be reached from other machines: set {TOKEN} or --token-file, or pass --no-token"
            )
        arguments, wanted = _wanted(ctx)
        devices: list[str | None] = list(device or []) or [arguments.pop("device", None)]
        from latent_rewards.judge.hf import HFJudge
        from latent_rewards.rewards.build import build_reward
        from latent_rewards.serving.service import Service

        first = options.load_judge(arguments | {"device": devices[0]}, weights=False)
        judges = [first, *(HFJudge(**(arguments | {"device": d})) for d in devices[1:])]
        service = Service(judges, lambda j: {n: build_reward(k, j, **o) for n, (k, o) in wanted.items()}, settings)
    with user_errors(OSError, about=f"{host}:{port}: "):
        listener = _listen(host, port)
    raise typer.Exit(run(service, listener))


def _settings(ctx: typer.Context) -> ServeSettings:
    from latent_rewards.serving.settings import ServeSettings

    given = ctx.params
    same = (
        "max_batch_rows",
        "max_queue_rows",
        "max_rows",
        "max_text_chars",
        "body_timeout",
        "deadline",
        "threads",
        "url_token",
        "log_requests",
    )
    return ServeSettings(
        token=_token(given["token_file"]), linger=given["linger_ms"] / 1000, mix=not given["no_mix"],
        max_body_bytes=int(given["max_body_mb"] * (1 << 20)), any_prompt=not given["own_prompts_only"],
        open_routes=tuple(given["open_route"] or ()),
        end_tokens=None if given["end_tokens"] is None else tuple(given["end_tokens"].split()),
        **{name: given[name] for name in same},
    )  # fmt: skip


def run(service: Service, listener: socket.socket) -> int:
    """Serve until a signal; 1 when the judge could not be loaded."""
    import uvicorn

    from latent_rewards.serving.app import create_app
    from latent_rewards.serving.protocol import Http

    app = create_app(service, failed=lambda: setattr(server, "should_exit", True))

    class Server(uvicorn.Server):
        """Says what a signal begins, and ends at a second Ctrl-C whatever the judge is at."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                typer.echo("stopping: what was asked is answered first; Ctrl-C again stops at once", err=True)
            elif sig == signal.SIGINT:
                os._exit(128 + sig)
            super().handle_exit(sig, frame)

    server = Server(
        uvicorn.Config(
            app, http=Http, ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(service.settings.deadline) + 1, timeout_keep_alive=75, backlog=4096,
        )
    )  # fmt: skip
    address = listener.getsockname()
    typer.echo(f"http://{_shown(address[0])}:{address[1]} rewards {', '.join(service.names)}", err=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    status = 1 if service.batcher.failure is not None else 0
    if service.batcher.loading:
        os._exit(status)  # Python waits for the threads of a pool, such as transformers loads weights with
    return status


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(4096)
    return listener


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(path: Path | None) -> str | None:
    if path is not None:
        return path.read_text(encoding="ascii").strip()
    from latent_rewards.serving.transport import token_here

    return token_here()


def _wanted(ctx: typer.Context) -> tuple[JsonObject, dict[str, tuple[str, JsonObject]]]:
    """Arguments of HFJudge, and name and options of each reward, by the file and the flags over it."""
    from latent_rewards.env import read_config

    path = ctx.params["config"]
    file = read_config(path) if path else {"judge": {}, "rewards": {"weighted": {}}}
    if not file["rewards"] and not ctx.params["reward"]:
        raise ValueError(f"{path}: name the rewards to serve, e.g. 'rewards: {{weighted: {{}}}}'")
    arguments = options.judge_arguments(ctx, file["judge"])
    if arguments.get("on_overflow") == "error":
        raise ValueError("a server answers each row for itself: on_overflow must be 'none' or 'truncate'")
    wanted = options.wanted_rewards(ctx, file["rewards"])
    out = {one.column: one.parsed() for one in wanted}
    if len(out) < len(wanted):
        raise ValueError(f"rewards {[one.column for one in wanted]} are not distinct; name them in a YAML file")
    return arguments, out

"""The command line's `serve`: a judge behind HTTP, for every rank and every stack."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from latent_rewards.judge.hf import HFJudge
from latent_rewards.rewards.build import REWARDS, build_reward

TOKEN = "LATENT_REWARDS_TOKEN"
logger = logging.getLogger(__name__)


def serve(
    judge: Annotated[str, typer.Option(help="Hub id or folder of the judge, or 'embedded' (for trials).")] = "embedded",
    rewards: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(REWARDS)}.")] = "weighted",
    reward_option: Annotated[
        list[str] | None, typer.Option(help="key=value for every reward, or reward.key=value for one.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with 'judge' and 'rewards', instead of the above.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Such as cuda:1; repeat it for one replica per device behind one port.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    judge_option: Annotated[
        list[str] | None, typer.Option(help="Further arguments of HFJudge, key=value, e.g. quantization=4bit.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 8077,
    token_file: Annotated[Path | None, typer.Option(help=f"File with the bearer token; else ${TOKEN}.")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Listen beyond loopback without a token.")] = False,
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
    from latent_rewards.cli.main import _LOADING, _user_errors

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _user_errors(ValueError, OSError, ImportError):
        from latent_rewards.serving.settings import ServeSettings

        settings = ServeSettings(
            token=_token(token_file), max_batch_rows=max_batch_rows, linger=linger_ms / 1000, mix=not no_mix,
            max_queue_rows=max_queue_rows, max_rows=max_rows, max_body_bytes=int(max_body_mb * (1 << 20)),
            max_text_chars=max_text_chars, body_timeout=body_timeout, deadline=deadline,
            any_prompt=not own_prompts_only, threads=threads,
        )  # fmt: skip
        if settings.token is None and not no_token and not _is_loopback(host):
            raise ValueError(
                f"{host} can be reached from other machines: set {TOKEN} or --token-file, or pass --no-token"
            )
        options, wanted = _wanted(judge, dtype, judge_option or [], rewards, reward_option or [], config)
        if options.get("on_overflow") == "error":
            raise ValueError("a server answers each row for itself: on_overflow must be 'none' or 'truncate'")
        devices: list[str | None] = list(device) if device else [options.pop("device", None)]
        judges = [HFJudge(**(options | {"device": d})) for d in devices]
    with _user_errors(*_LOADING, about=f"judge {judges[0].model_name!r}: "):
        _ = judges[0].encoder
    with _user_errors(ValueError, OSError, ImportError):
        from latent_rewards.serving.service import Service

        service = Service(judges, lambda j: {n: build_reward(n, j, **o) for n, o in wanted.items()}, settings)
    with _user_errors(OSError, about=f"{host}:{port}: "):
        listener = _listen(host, port)
    raise typer.Exit(run(service, listener))


def run(service: Any, listener: socket.socket) -> int:
    """Serve until a signal; 1 when the judge could not be loaded."""
    import uvicorn

    from latent_rewards.serving.app import create_app

    app = create_app(service, failed=lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(
        uvicorn.Config(
            app, http="h11", ws="none", lifespan="on", log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(service.settings.deadline) + 1, timeout_keep_alive=75, backlog=4096,
        )
    )  # fmt: skip
    address = listener.getsockname()
    typer.echo(f"http://{_shown(address[0])}:{address[1]} rewards {', '.join(service.names)}", err=True)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    return 1 if service.batcher.failure is not None else 0


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
    return os.environ.get(TOKEN) or None


def _wanted(
    judge: str, dtype: str, judge_option: list[str], rewards: str, reward_option: list[str], config: Path | None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Arguments of HFJudge, and of each reward."""
    from latent_rewards.cli.main import _reward_options

    if config is not None:
        from latent_rewards.env import read_config

        raw = read_config(config)
        if not raw["rewards"]:
            raise ValueError(f"{config}: name the rewards to serve, e.g. 'rewards: {{weighted: {{}}}}'")
        return dict(raw["judge"]), {name: dict(options or {}) for name, options in raw["rewards"].items()}
    names = [name.strip() for name in rewards.split(",") if name.strip()]
    unknown = sorted(set(names) - set(REWARDS))
    if unknown or not names:
        raise ValueError(f"unknown rewards {unknown}; known are {sorted(REWARDS)}")
    options: dict[str, Any] = {"model": judge, "dtype": dtype}
    for text in judge_option:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--judge-option {text!r}: expected key=value")
        options[key] = yaml.safe_load(value)
    return options, _reward_options(names, reward_option, None)

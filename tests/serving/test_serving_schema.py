"""schemathesis: what the OpenAPI schema allows is answered as it says, and what it does not allow is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

from servers import Server, environment, serving

# Schema-valid texts may still be no dialogue, and a template no template: those routes may answer 422 to valid JSON.
# The hooks ask for no deadline that could pass, so a 504 is a fault.
CONFIG = f"""
hooks = {str(Path(__file__).parent / "schema_hooks.py")!r}

[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx"]
positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "429"]

[[operations]]
include-path = "/score"
checks.positive_data_acceptance.expected-statuses = ["2xx", "429"]
"""


@pytest.mark.parametrize(
    ("phases", "examples"), [("fuzzing", 10), pytest.param("coverage,fuzzing", 150, marks=pytest.mark.slow)]
)
def test_schemathesis_finds_nothing(folder: str, tmp_path: Path, phases: str, examples: int) -> None:
    with serving(folder, tmp_path / "log", "--reward", "weighted", "--reward", "verifier") as server:
        done = schemathesis(server, tmp_path, "--phases", phases, "--max-examples", str(examples))
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        assert "No issues found" in done.stdout or "passed" in done.stdout, done.stdout[-2000:]
        assert server.process.poll() is None


def test_a_504_for_no_reason_would_be_found(folder: str, tmp_path: Path) -> None:
    """A server that keeps no deadline at all: everything else that it answers is right."""
    with serving(folder, tmp_path / "log", "--reward", "weighted", "--deadline", "1e-9") as server:
        done = schemathesis(server, tmp_path, "--phases", "fuzzing", "--max-examples", "20", "--include-path", "/score")
        assert done.returncode == 1 and "Server error" in done.stdout and "504" in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize(
    ("given", "sent"),
    [(1, 60.0), (59.5, 60.0), ("1.5", "60.0"), (60, 60), (86_400, 86_400), ("61", "61"),
     (0, 0), (-1, -1), (True, True), (None, None), ("", ""), ("nan", "nan"), ("soon", "soon"), ([1], [1])],
)  # fmt: skip
def test_short_deadlines_are_made_longer_and_wrong_ones_stay_wrong(given: object, sent: object) -> None:
    from schema_hooks import kept

    assert kept(given) == sent and type(kept(given)) is type(sent)


def schemathesis(server: Server, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of its command line against a server."""
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "run",
        server.url + "/openapi.json", "--seed", "1", "--checks", "all", "--max-response-time", "300",
        "--generation-database", "none", "--request-timeout", "60", *arguments,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=1500, check=False
    )

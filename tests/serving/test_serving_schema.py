"""schemathesis: what the OpenAPI schema allows is answered as it says, and what it does not allow is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("schemathesis")

from servers import environment, serving

# Schema-valid texts may still be no dialogue, and a template no template: those routes may answer 422 to valid JSON.
# A `deadline` of a second may pass on a busy machine: 504 says so.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "429", "504"]

[[operations]]
include-path = "/score"
checks.positive_data_acceptance.expected-statuses = ["2xx", "429", "504"]
"""


@pytest.mark.parametrize(
    ("phases", "examples"), [("fuzzing", 10), pytest.param("coverage,fuzzing", 150, marks=pytest.mark.slow)]
)
def test_schemathesis_finds_nothing(folder: str, tmp_path: Path, phases: str, examples: int) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    with serving(folder, tmp_path / "log", "--reward", "weighted", "--reward", "verifier") as server:
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml"), "run",
            server.url + "/openapi.json", "--phases", phases, "--max-examples", str(examples), "--seed", "1",
            "--checks", "all", "--max-response-time", "300", "--generation-database", "none", "--request-timeout", "60",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=1500, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        assert "No issues found" in done.stdout or "passed" in done.stdout, done.stdout[-2000:]
        assert server.process.poll() is None

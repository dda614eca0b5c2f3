"""The command line: `latent-rewards score`, `evaluate`, `best-of-n`, `probe`, `export`, `serve`; begin at `main`."""

from latent_rewards.cli.main import app

__all__ = ["app"]

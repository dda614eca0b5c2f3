"""`python -m latent_rewards`, for launchers that start modules: `accelerate launch -m latent_rewards best-of-n ...`."""

from latent_rewards.cli import app

app()

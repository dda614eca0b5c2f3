"""BiGGen Bench: responses with human scores 1-5 and a rubric per instance (Kim et al. 2024; CC-BY-SA-4.0)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.files.types import Row

KIND = "rating"
SOURCE = Hub("prometheus-eval/BiGGen-Bench-Results", ("human_eval",))


def convert(row: Row) -> Row:
    """The rubric is a record of criteria and five descriptions; a system prompt becomes a message."""
    rubric, system = row["score_rubric"], row.get("system_prompt")
    levels = [f"Score {i}: {rubric[f'score{i}_description']}" for i in range(1, 6)]
    user = {"role": "user", "content": row["input"]}
    return {
        "prompt": [{"role": "system", "content": system}, user] if system else row["input"],
        "response": row["response"], "score": row["human_score"], "scale": (1, 5), "subset": row.get("capability"),
        "rubric": "\n".join([rubric["criteria"], *levels]), "reference": row.get("reference_answer"),
    }  # fmt: skip

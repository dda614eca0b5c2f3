"""MT-Bench human judgments: pairs of six models over two turns; ties are left out (Zheng et al. 2023; CC-BY-4.0)."""

from latent_rewards.evaluation.benchmarks.remote import Hub
from latent_rewards.evaluation.benchmarks.rows import LeftOut
from latent_rewards.files.types import Row

KIND = "pair"
SOURCE = Hub("lmsys/mt_bench_human_judgments", ("human",))


def convert(row: Row) -> Row:
    """The conversations share the user's turns; the answer to the judged turn is the response.

    In the second turn each model answers after its own first answer, so the winner's dialogue is the prompt.
    """
    if row["winner"] not in ("model_a", "model_b"):
        raise LeftOut("tie")
    sides = ("conversation_a", "conversation_b")
    won, lost = (row[k] for k in (sides if row["winner"] == "model_a" else sides[::-1]))
    end = 2 * int(row["turn"]) - 1
    return {
        "prompt": won[:end],
        "chosen": won[end]["content"],
        "rejected": lost[end]["content"],
        "subset": f"turn {row['turn']}",
    }

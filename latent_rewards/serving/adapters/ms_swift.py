"""ms-swift: an asynchronous outcome reward model, and a plugin for an exported reward model.

    # latent_plugin.py, in a folder of its own: ms-swift puts the folder of a plugin first on sys.path, and here that
    # would put our `verl.py` or `verifiers.py` before the packages of those names
    import latent_rewards.serving.adapters.ms_swift

    swift rlhf --rlhf_type grpo --external_plugins latent_plugin.py --reward_funcs latent_rewards ...
    swift rlhf --rlhf_type grpo --external_plugins latent_plugin.py \
        --reward_model <export> --reward_model_plugin latent_rewards ...

Source: ms-swift 4.6.0 `swift/rewards/{orm,rm_plugin}.py`, `swift/rl_core/grpo_algorithm.py`, `swift/utils/utils.py`,
`swift/rlhf_trainers/grpo_trainer.py` (`rm_plugins[name](model=..., template=...)`), `swift/template/base.py`.
"""

from __future__ import annotations

from typing import Any

from swift.rewards import AsyncORM, orms, rm_plugins

from latent_rewards.serving.adapters import client
from latent_rewards.serving.dialogues import SLOTS, truth_slots

TRUTH = ("solution", "ground_truth", "label", "answer", *SLOTS)


class LatentRewards(AsyncORM):
    """Scores completions of `messages`; dataset columns fill further slots of the judge prompt."""

    async def __call__(
        self, completions: list[str], messages: list[list[dict[str, Any]]], **columns: Any
    ) -> list[float]:
        """One reward per completion; a row of mixed data sets has None in the columns that it lacks."""
        known = {name: columns[name] for name in TRUTH if columns.get(name) is not None}
        rows = []
        for i, (completion, turns) in enumerate(zip(completions, messages, strict=True)):
            prompt = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            own = {name: values[i] for name, values in known.items() if values[i] is not None}
            truth = next(iter(own.values()), None)
            rows.append({"prompt": prompt, "completion": completion, **truth_slots(truth, own)})
        return await client().score_async(rows)


def exported_plugin(model: Any, template: Any) -> Any:
    """ms-swift's plugin of a reward model, with the chat template of the folder: an export's judge prompt.

    The template is the reward model's own object (`swift/pipelines/train/rlhf.py`), so that of the policy stays as it
    is; the flag `--template_backend jinja` would change both, and training cannot use it.
    """
    template.template_backend = "jinja"
    return rm_plugins["default"](model, template)


orms["latent_rewards"] = LatentRewards
rm_plugins["latent_rewards"] = exported_plugin

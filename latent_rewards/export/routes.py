"""The line for each stack, and the way around the folder where a stack would score it wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from latent_rewards.files.types import JsonObject

_PLUGIN = "latent_plugin.py: import latent_rewards.serving.adapters.ms_swift"
_SERVED = "# the judge itself, on a server: latent-rewards serve --judge"


def usage(folder: str | Path) -> dict[str, str]:
    """The exact line for each stack, for a folder written by this package.

    A stack that reads one score, or does not render the folder's chat template, gets the line of its reward function or
    remote reward instead. Read in verl 0.9.1, ms-swift 4.6.0, OpenRLHF 0.11.2 and SGLang of 2026.
    """
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    about = config["latent_rewards"]
    single = len(about["bias"]) == 1
    served = f"{_SERVED} {about['judge']}"
    remote = f"--reward.remote_url http://judge:8077/get_reward   {served}"
    common = {"OpenRLHF": f"{remote}; as a model it would get the policy's token ids, without the judge prompt"}
    return common | (_single(folder, about["bias"][0]) if single else _several(folder, about, served))


def _single(folder: str | Path, bias: float) -> dict[str, str]:
    return {
        "TRL": f'GRPOTrainer(reward_funcs="{folder}", ...)   # conversational prompts only: others get no judge prompt',
        "verl": f"reward.reward_model.enable=True reward.reward_model.model_path={folder} "
        "reward.reward_model.rollout.name=vllm reward.reward_model.rollout.tensor_model_parallel_size=1",
        "ms-swift": f"--external_plugins latent_plugin.py --reward_model {folder} "
        f"--reward_model_plugin latent_rewards   # {_PLUGIN}; with its own plugin: not the judge prompt",
        "vLLM": f"vllm serve {folder} --runner pooling --pooler-config '{json.dumps({'logit_mean': -bias})}'   "
        '# POST /classify {"messages": [...], "use_activation": false}',
        "SGLang": f"python -m sglang.launch_server --model-path {folder} --is-embedding   "
        f'# render the chat template, POST /classify {{"text": ...}}, take "embedding"{_plus([bias])}; /v1/classify '
        "answers 1.0 always",
    }


def _several(folder: str | Path, about: JsonObject, served: str) -> dict[str, str]:
    one = f"the folder has several outputs and the stack reads one; {served[2:]}"
    labels = about.get("kind") == "labels"
    activation = "true" if labels else "false"
    what = "the label distribution" if labels else "the scores"
    return {
        "TRL": f"no line: {one}",
        "verl": "reward.custom_reward_function.path=pkg://latent_rewards.serving.adapters.verl "
        f"reward.custom_reward_function.name=compute_score   # {one}",
        "ms-swift": f"--external_plugins latent_plugin.py --reward_funcs latent_rewards   # {_PLUGIN}; {one}",
        "vLLM": f"vllm serve {folder} --runner pooling   "
        f'# POST /classify {{"messages": [...], "use_activation": {activation}}}: {what}',
        "SGLang": f"python -m sglang.launch_server --model-path {folder} --is-embedding   "
        f'# render the chat template, POST /classify {{"text": ...}}: "embedding" has them{_plus(about["bias"])}',
    }


def _plus(bias: Sequence[float]) -> str:
    """What a stack's head without bias leaves out."""
    return "" if not any(bias) else f", to which {', '.join(f'{b:.6g}' for b in bias)} is to be added"

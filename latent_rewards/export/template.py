"""A judge prompt as a tokenizer's chat template, so that plain conversations are scored as ours are.

Judged text is fenced by a private-use character that the normaliser removes again: the tokenizer looks for control
tokens before that, so those spelt in the judged text are cut in two when it does, and whole when they become tokens of
plain text. A program that tokenises without this tokenizer file's normaliser loses that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latent_rewards.judge.encoding import Encoder
from latent_rewards.judge.hf import HFJudge
from latent_rewards.judge.messages import SPEAKER, Segment
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.template import slots_of
from latent_rewards.judge.trajectory import DERIVED

FENCE = "\ue004"
_CLASS, _CLASS_FILE = "JudgeTokenizer", "judge_tokenizer"
_CLASS_SOURCE = f'''"""Has tokenizer.json read as it stands; some families would rebuild it from its words."""

from transformers import PreTrainedTokenizerFast


class {_CLASS}(PreTrainedTokenizerFast):
    """The judge's tokenizer."""
'''

_HEAD = """
{%- macro fenced(text) -%}
{%- set ns = namespace(text=text | string | replace(FENCE, '')) -%}
{%- for word in FORBIDDEN -%}
{%- set ns.text = ns.text | replace(word, word[:1] ~ FENCE ~ word[1:]) -%}
{%- endfor -%}
{{- FENCE ~ ns.text ~ FENCE -}}
{%- endmacro -%}
{%- macro said(message) -%}
{%- if message.content is string -%}{{- fenced(message.content) -}}
{%- elif message.content -%}
{%- set ns = namespace(text='') -%}
{%- for part in message.content -%}{%- set ns.text = ns.text ~ part.text -%}{%- endfor -%}
{{- fenced(ns.text) -}}
{%- endif -%}
{%- if message.tool_calls -%}
{{- '\\nTool calls:\\n' -}}{{- fenced(message.tool_calls | tojson) -}}
{%- endif -%}
{%- endmacro -%}
{%- macro talk(turns) -%}
{%- if turns | length == 1 and turns[0].role in ['user', 'assistant'] and not turns[0].tool_calls -%}
{{- said(turns[0]) if turns[0].content else fenced('') -}}
{%- else -%}
{%- for turn in turns -%}
{{- ('' if loop.first else '\\n\\n') ~ SPEAKERS.get(turn.role, 'Other') -}}
{%- if turn.name -%}{{- fenced(' (' ~ turn.name ~ ')') -}}{%- endif -%}
{{- ':\\n' -}}{{- said(turn) -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""


def judge_template(encoder: Encoder, prompt: JudgePrompt) -> str:
    """Jinja chat template that renders a conversation, its last message being the completion, as `prompt` does.

    Raises:
        ValueError: the prompt needs more than `prompt` and `completion`.
    """
    more = sorted(set(prompt.slots) - {"prompt", "completion"} - set(prompt.optional))
    if more or not prompt.completion:
        raise ValueError(
            f"prompt {prompt.name!r} needs {more or 'no completion'}; only a prompt that needs exactly 'prompt' and "
            "'completion' can become a chat template"
        )
    made = sorted(set(slots_of(prompt.body)) & set(DERIVED))
    if made or prompt.reasoning == "only" or prompt.opened:
        raise ValueError(
            f"prompt {prompt.name!r} needs {made or 'thoughts told from answers'}, which a chat template cannot make "
            "from the conversation; export one with {{ completion }}, and strip thoughts before you send them"
        )
    dialogue = prompt.render({"prompt": "p", "completion": "c"})
    slots = [s.slot for t in dialogue.turns for s in t.segments if s.slot is not None]
    constants = {
        "FENCE": FENCE,
        "FORBIDDEN": sorted((t for t in encoder.control.values() if len(t) > 1), key=lambda t: (-len(t), t)),
        "SPEAKERS": SPEAKER,
    }
    text = "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in constants.items())
    head = encoder.tokenizer.convert_ids_to_tokens(encoder._head())
    text += _HEAD.strip() + "".join(f"{{{{- {json.dumps(t)} -}}}}" for t in head)
    for part in encoder._layout(dialogue).parts:
        if isinstance(part, Segment):
            text += f"{{{{- {json.dumps(part.text)} -}}}}"
        elif slots[part] == "prompt":
            text += "{{- talk(messages[:-1] if messages[-1].role == 'assistant' else messages) -}}"
        else:
            text += "{{- talk([messages[-1]]) if messages[-1].role == 'assistant' else fenced('') -}}"
    return text


def judge_tokenizer(tokenizer: Any, template: str) -> Any:
    """The judge's tokenizer with our template and the step that removes the fence; it adds no special tokens itself.

    A BOS is in the template's text, where the judge's own template has one.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"export needs a fast tokenizer (tokenizer.json); {type(tokenizer).__name__} is not one")
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = [{"type": "Replace", "pattern": {"String": FENCE}, "content": ""}, raw["normalizer"]]
    raw |= {"normalizer": {"type": "Sequence", "normalizers": [s for s in steps if s]}, "post_processor": None}
    raw["added_tokens"] = [t | {"normalized": False} for t in raw["added_tokens"]]  # found before the fence is gone
    names = ("eos_token", "unk_token", "pad_token")  # no bos_token: verl cuts one that begins the rendered prompt
    special = {n: getattr(tokenizer, n) for n in names if getattr(tokenizer, n, None) is not None}
    out = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(raw)), **special)
    out.chat_template = template
    out.model_max_length = tokenizer.model_max_length
    return out


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save so that `AutoTokenizer` reads tokenizer.json as it stands, with `trust_remote_code` or without.

    For some model types (Qwen2, Phi-3) transformers 5 builds the family's own tokenizer from the vocabulary instead,
    without our step, unless the config names a class of the folder (models/auto/tokenization_auto.py, read in 5.0 to
    5.24). verl and ms-swift trust every folder and then run that class: two lines that change nothing.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_input_names"] = ["input_ids", "attention_mask"]  # transformers 4 would give token types, too
    named = f"{_CLASS_FILE}.{_CLASS}"
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": [named, named]}}
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / f"{_CLASS_FILE}.py").write_text(_CLASS_SOURCE, encoding="utf-8")


def same_tokens(judge: HFJudge, prompt: JudgePrompt, folder: Path) -> bool:
    """Whether the written tokenizer gives our token ids on conversations that tend to differ."""
    from transformers import AutoTokenizer

    written = AutoTokenizer.from_pretrained(folder)
    texts = ["What is 2 + 2?", "Ends in a stop.", "\nnew lines \n", " spaces ", "", "Tab\there: 12345 \u00e9\u4e2d"]
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi!"}]
    talks: list[list[dict[str, str]]] = [[{"role": "user", "content": t}] for t in texts] + [talk]
    for turns, answer in zip(talks, [*texts[::-1], "Hello."], strict=True):
        ours = judge.encoder.encode([prompt.render({"prompt": turns, "completion": answer})])[0].ids
        messages = [*turns, {"role": "assistant", "content": answer}]
        text = written.apply_chat_template(messages, tokenize=False)
        if list(written(text, add_special_tokens=False)["input_ids"]) != list(ours):
            return False
    return True

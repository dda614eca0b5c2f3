"""Taking apart what other stacks send: prompts in a chat template, completions with end tokens."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from latent_rewards.judge.messages import to_text
from latent_rewards.serving.dialogues import (
    last_answer,
    plain_prompt,
    plain_turns,
    split_query,
    truth_slots,
    without_end,
)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Eight.<|im_end|>", "Eight."),
        ("Eight. <|im_end|>\n<|endoftext|>", "Eight."), ("Eight.</s><pad><pad>", "Eight."),
        ("Eight.<\uff5cend\u2581of\u2581sentence\uff5c>", "Eight."), ("Eight.  \n", "Eight.  \n"), ("<|im_end|>", ""),
        ("a <|im_end|> b", "a <|im_end|> b"), ("", ""),
    ],
)  # fmt: skip
def test_end_tokens_are_cut_and_nothing_else(text: str, want: str) -> None:
    assert without_end(text) == want


def test_a_long_run_of_blanks_takes_no_time() -> None:
    """A policy may write nothing else; the pattern that was here took 10 seconds for a tenth of this."""
    started = time.perf_counter()
    text = "Eight." + " " * 400_000
    assert without_end(text) == text and without_end(text + "." + "<|im_end|>") == text + "."
    assert time.perf_counter() - started < 1


def test_the_setting_names_the_tokens_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_REWARDS_END_TOKENS", "<turn|> [EOT]")
    assert without_end("Eight.<turn|>\n[EOT]") == "Eight." and without_end("Eight.</s>") == "Eight.</s>"
    assert split_query("q: Eight.[EOT]", "q: ") == "Eight."
    monkeypatch.setenv("LATENT_REWARDS_END_TOKENS", "")
    assert without_end("Eight.<|im_end|>") == "Eight.<|im_end|>"
    monkeypatch.setenv("LATENT_REWARDS_END_TOKENS", "[EOT]")
    assert without_end("Eight.<turn|>", ["<turn|>"]) == plain_prompt("Eight.<turn|>", ["<turn|>"]) == "Eight."
    assert without_end("Eight.[EOT]", ["<turn|>"]) == without_end("Eight.[EOT]", []) == "Eight.[EOT]"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("[INST] a [/INST] b</s>[INST] c [/INST]", [said("user", "a"), said("assistant", "b"), said("user", "c")]),
        ("<s>[INST] a [/INST]", "a"),
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n", "a"),
        ("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "a"),
    ],
)
def test_prompts_of_templates(text: str, want: object) -> None:
    """Turns of the assistant are kept, and the opening of the one that is due is not, begun thoughts included."""
    assert plain_prompt(text) == want


LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
QUOTED = "What does <|im_start|>user\nhi<|im_end|> mean?"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *((text, text) for text in (
            "Translate to French: the tag [INST] opens a turn of Llama 2. Why?", QUOTED,
            "What is <start_of_turn>user\nhi<end_of_turn>?", "Is <|user|>\nhi<|end|> of Phi?",
            "</s> or [INST] a [/INST]?",
        )),
        ("<|begin_of_text|>" + LLAMA_3.format(QUOTED), QUOTED),
        ("<bos>\n<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n", "a"),
        ("<pad><pad><s> [INST] a [/INST]", "a"), ("<|endoftext|><|im_start|>user\na<|im_end|>\n", "a"),
        ("<s><|system|>\nb<|end|><|user|>\na<|end|><|assistant|>\n", [said("system", "b"), said("user", "a")]),
        (" " * 100_000 + "[INST] a", "a"), (" " * 100_000 + "a [INST] b", " " * 100_000 + "a [INST] b"),
    ],
)  # fmt: skip
def test_a_template_begins_the_text(text: str, want: object) -> None:
    """What only quotes a mark is no rendered prompt, and a prompt in one template may quote the mark of another."""
    started = time.perf_counter()
    assert plain_prompt(text) == want and time.perf_counter() - started < 1


def test_an_answer_in_mistrals_template() -> None:
    assert last_answer("<s>[INST] a [/INST] b</s>") == ("a", "b")


@pytest.mark.parametrize(
    ("content", "same"),
    [
        ([{"type": "text", "text": "sev"}, {"type": "text", "text": "en"}], "seven"),
        (None, ""),
        ([], ""),
        ("seven", "seven"),
    ],
)
def test_contents_that_are_no_text_say_what_they_say(content: object, same: str) -> None:
    """Text parts are their text, and null is an empty one, of the answer and of the question; an image is neither."""
    for turns in (
        [said("user", "a"), {"role": "assistant", "content": content}],
        [{"role": "user", "content": content}],
    ):
        dialogue = turns if len(turns) == 2 else [*turns, said("assistant", "b")]
        found = last_answer(json.dumps(dialogue))
        assert [to_text(x) for x in found] == (["a", same] if len(turns) == 2 else [same, "b"])
    assert to_text(plain_turns([{"role": "user", "content": content}])) == same
    with pytest.raises(ValueError, match="'image_url' part"):
        last_answer(json.dumps([said("user", "a"), {"role": "assistant", "content": [{"type": "image_url"}]}]))


def test_messages_that_were_rendered_one_by_one() -> None:
    """NeMo-RL renders the user's message, with or without a system prompt before it, or each message's own piece."""
    opening = "<|im_start|>assistant\n"
    user = "<|im_start|>user\na<|im_end|>\n"
    assert plain_turns([said("user", user + opening)]) == "a"
    alone = [said("system", "Be brief."), said("user", user + opening)]
    assert plain_turns(alone) == [said("system", "Be brief."), said("user", "a")]
    assert plain_turns([said("user", "<|im_start|>system\ns<|im_end|>\n" + user)]) == [
        said("system", "s"), said("user", "a"),
    ]  # fmt: skip
    pieces = [said("user", user + opening), said("assistant", "b<|im_end|>"), said("environment", "wrong")]
    assert plain_turns(pieces) == [said("user", "a"), said("assistant", "b"), said("environment", "wrong")]
    assert plain_turns([said("user", "plain")]) == "plain"


RUBRICS = [{"criterion": "Says eight.", "weight": 2.0}]


@pytest.mark.parametrize(
    ("truth", "also", "want"),
    [
        ("8", None, {"reference": "8"}),
        (8, None, {"reference": "8"}), (np.int64(8), None, {"reference": "8"}), (np.uint8(8), None, {"reference": "8"}),
        (np.float32(0.1), None, {"reference": "0.1"}), (np.float64(8), None, {"reference": "8.0"}),
        (np.True_, None, {}),
        (np.str_("8"), None, {"reference": "8"}), (" ", None, {}), (None, None, {}), (True, None, {}),
        ({"reference": "8", "rubrics": RUBRICS, "tone": "dry", "prompt": "p", "n": 1}, None,
         {"reference": "8", "rubrics": RUBRICS, "tone": "dry"}),
        ('{"reference": "8", "tone": "dry"}', None, {"reference": "8", "tone": "dry"}),
        ('{"answer": 8}', None, {"reference": '{"answer": 8}'}), ("{x", None, {"reference": "{x"}),
        ("8", {"rubrics": RUBRICS, "reference": "eight", "split": "train"}, {"reference": "eight", "rubrics": RUBRICS}),
        (None, {"rubric": RUBRICS}, {"rubrics": RUBRICS}), ({"rubric": "a text"}, None, {"rubric": "a text"}),
        (["8", "eight"], {"criteria": None}, {}),
    ],
)  # fmt: skip
def test_ground_truth_becomes_slots(truth: object, also: dict[str, object] | None, want: dict[str, object]) -> None:
    assert truth_slots(truth, also) == want

"""Thoughts set aside: every form of tag with the right answer beside it, written by hand."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latent_rewards.judge.thought_tags import THOUGHT_TAGS, split_thoughts

KIMI = "\u25c1think\u25b7", "\u25c1/think\u25b7"
HARMONY = "<|channel|>analysis<|message|>Capital? Paris.<|end|><|start|>assistant<|channel|>final<|message|>"

# what it shows: (the reply, its thoughts, its answer)
FORMS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "none": ("Paris.", (), "Paris."),
    "blank text": (" \n ", (), " \n "),
    "a thought, then the answer": ("<think>\nFrance...\n</think>\n\nParis.", ("\nFrance...\n",), "Paris."),
    "on one line": ("<think>France</think>Paris.", ("France",), "Paris."),
    "a space between": ("<think>France</think> Paris.", ("France",), "Paris."),
    "white space before": (" \n\n<think>France</think>\nParis.", ("France",), "Paris."),
    "white space after the answer stays": ("<think>x</think>\n\nParis.\n", ("x",), "Paris.\n"),
    "the answer's indentation stays": ("<think>x</think>\n\n    return 1", ("x",), "    return 1"),
    "an empty thought": ("<think>\n\n</think>\n\nParis.", ("\n\n",), "Paris."),
    "a thought and nothing else": ("<think>x</think>", ("x",), ""),
    "opened by the template": ("France, so Paris.\n</think>\n\nParis.", ("France, so Paris.\n",), "Paris."),
    "opened by the template, on one line": ("France, so Paris.</think>Paris.", ("France, so Paris.",), "Paris."),
    "opened by the template, empty": ("\n</think>\n\nParis.", ("\n",), "Paris."),
    "opened by the template, that names the tag": (
        "The user asks what <think> does.\n</think>\n\nIt opens a thought.",
        ("The user asks what <think> does.\n",), "It opens a thought.",
    ),
    "upper case": ("<THINK>x</Think>Paris.", ("x",), "Paris."),
    "nested": ("<think>a<think>b</think>c</think>Paris.", ("a<think>b</think>c",), "Paris."),
    "a thought that names its own tag": ("<think>They wrote <think> there.</think>Yes.", ("They wrote <think> there.",),
                                         "Yes."),
    "a thought that shows its closing tag": ("<think>Close with `</think>`.</think>Yes.", ("Close with `</think>`.",),
                                             "Yes."),
    "a thought with open code": ("<think>\n```py\nx = 1\n</think>\n\nAnswer:\n```py\nx\n```", ("\n```py\nx = 1\n",),
                                 "Answer:\n```py\nx\n```"),
    "several at the start": ("<think>a</think>\n<think>b</think>\nParis.", ("a", "b"), "Paris."),
    "several between the parts of the answer": (
        "<think>a</think>\nFirst.\n\n<think>b</think>\n\nSecond.", ("a", "b"), "First.\n\nSecond.",
    ),
    "after the first words": ("Let me see.\n<think>a</think>\nParis.", ("a",), "Let me see.\nParis."),
    "at the end": ("Paris.\n\n<think>Was that right?</think>", ("Was that right?",), "Paris."),
    "two kinds": ("<thinking>a</thinking><reflection>b</reflection>", ("a",), "<reflection>b</reflection>"),
    "reasoning, and the answer's own tags": (
        "<reasoning>\n2+2\n</reasoning>\n<answer>\n4\n</answer>", ("\n2+2\n",), "<answer>\n4\n</answer>",
    ),
    "thought": ("<thought>x</thought>\nParis.", ("x",), "Paris."),
    "Seed-OSS": ("<seed:think>x</seed:think>Paris.", ("x",), "Paris."),
    "LongCat": ("<longcat_think>\nx\n</longcat_think>\nParis.", ("\nx\n",), "Paris."),
    "Magistral": ("[THINK]x[/THINK]Paris.", ("x",), "Paris."),
    "Kimi": (f"{KIMI[0]}x{KIMI[1]}Paris.", ("x",), "Paris."),
    "OpenThoughts": ("<|begin_of_thought|>\n\nx\n\n<|end_of_thought|>\n\nParis.", ("\n\nx\n\n",), "Paris."),
    "Command A": ("<|START_THINKING|>x<|END_THINKING|>Paris.", ("x",), "Paris."),
    "Apertus": ("<|inner_prefix|>x<|inner_suffix|>Paris.", ("x",), "Paris."),
    "Gemma 4": ("<|channel>thought\nx<channel|>Paris.", ("\nx",), "Paris."),
    "harmony": (HARMONY + "Paris.<|return|>", ("Capital? Paris.",), "Paris."),
    "harmony, without its end": (HARMONY + "Paris.", ("Capital? Paris.",), "Paris."),
    "harmony, with the turn's start": ("<|start|>assistant" + HARMONY + "Paris.", ("Capital? Paris.",), "Paris."),
    "harmony, begun by the template": (
        "Capital? Paris.<|end|><|start|>assistant<|channel|>final<|message|>Paris.<|return|>", ("Capital? Paris.",),
        "Paris.",
    ),
    "harmony, two thoughts and a preamble": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>Paris.",
        ("a", "b"), "I look it up.\n\nParis.",
    ),
    "harmony, a tool call": (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.look<|channel|>commentary json"
        '<|message|>{"q": 1}<|call|>',
        ("a",), 'to=functions.look {"q": 1}',
    ),
    "harmony, decoded without control tokens": ("analysisCapital? Paris.assistantfinalParis.", ("Capital? Paris.",),
                                                "Paris."),
    "other languages": ("<think>\nLa capitale de la France\u2026\n</think>\n\n\u5df4\u9ece\u3002",
                        ("\nLa capitale de la France\u2026\n",), "\u5df4\u9ece\u3002"),
    "written from right to left": (
        "<think>\u05e6\u05e8\u05e4\u05ea</think>\u05e4\u05e8\u05d9\u05d6", ("\u05e6\u05e8\u05e4\u05ea",),
        "\u05e4\u05e8\u05d9\u05d6",
    ),
    "Windows line ends": ("<think>\r\nx\r\n</think>\r\n\r\nParis.", ("\r\nx\r\n",), "Paris."),
    "the answer is code with tags": (
        "<think>x</think>\n```xml\n<think>\nhm\n</think>\n```", ("x",), "```xml\n<think>\nhm\n</think>\n```",
    ),
}  # fmt: skip

MATERIAL = {
    "in a sentence": "R1 writes <think> and </think> around its thought.",
    "the closing tag in a sentence": "The tag </think> ends a thought, and </think>, too.",
    "between backticks": "Begin with `<think>` and end with `</think>`.",
    "between quotation marks": 'Stop at "</think>" or \u201c</think>\u201d.',
    "in a block of code": "Like this:\n```xml\n<think>\nhm\n</think>\n```\nThat is all.",
    "in a block of code with tildes": "~~~\n<think>\nhm\n</think>\n~~~",
    "code from the start": "```\n<think>hm</think>\n```",
    "inside other markup": "<doc>\n  <think>hm</think>\n</doc>",
    "in a list": "- <think>: opens\n- </think>: closes",
    "never closed, with a sentence after it": "Tags:\n<think> is one of them.",
    "harmony in a block of code": f"```\n<|start|>assistant{HARMONY}Paris.<|return|>\n```",
    "a word that begins alike": "<thinker>x</thinker> analysis final",
    "half a tag": "<thin",
    "no tag": "a < b and [THINKING] and b > a",
}

UNFINISHED = {
    "only opened": ("<think>", ("",), ""),
    "cut off": ("<think>\nFrance is", ("\nFrance is",), ""),
    "cut off in upper case": ("  <THINK>France", ("France",), ""),
    "closed by another pair": ("<think>France[/THINK]Paris.", ("France[/THINK]Paris.",), ""),
    "closed as material only": ("<think>End with `</think>`", ("End with `</think>`",), ""),
    "opened again": ("<think>a</think>Paris?\n<think>\nNo,", ("a", "\nNo,"), "Paris?"),
    "opened after the answer": ("Paris?\n\n<think>\nWait,", ("\nWait,",), "Paris?"),
    "nested, cut off": ("<think>a<think>b", ("a<think>b",), ""),
    "harmony": ("<|channel|>analysis<|message|>Capital of", ("Capital of",), ""),
    "harmony, the thought is over": ("<|channel|>analysis<|message|>Paris.<|end|>", ("Paris.",), ""),
    "Magistral": ("[THINK]France", ("France",), ""),
}


@pytest.mark.parametrize(("text", "thoughts", "answer"), FORMS.values(), ids=FORMS)
def test_forms(text: str, thoughts: tuple[str, ...], answer: str) -> None:
    assert split_thoughts(text) == (thoughts, answer, False)


@pytest.mark.parametrize("text", MATERIAL.values(), ids=MATERIAL)
def test_tags_shown_as_material_stay(text: str) -> None:
    assert split_thoughts(text) == ((), text, False)


@pytest.mark.parametrize("text", MATERIAL.values(), ids=MATERIAL)
def test_material_stays_after_a_thought(text: str) -> None:
    assert split_thoughts(f"<think>\nhm\n</think>\n\n{text}") == (("\nhm\n",), text, False)


@pytest.mark.parametrize(("text", "thoughts", "answer"), UNFINISHED.values(), ids=UNFINISHED)
def test_replies_that_end_inside_their_thought(text: str, thoughts: tuple[str, ...], answer: str) -> None:
    assert split_thoughts(text) == (thoughts, answer, True)


def test_a_text_that_is_known_to_begin_inside_the_thought() -> None:
    assert split_thoughts("France, so", opened=True) == (("France, so",), "", True)
    assert split_thoughts("", opened=True) == (("",), "", True)
    assert split_thoughts("France</think>Paris.", opened=True) == (("France",), "Paris.", False)
    assert split_thoughts("so it is 4 </think> the answer", opened=True).answer == "the answer"
    assert split_thoughts("<think>France</think>Paris.", opened=True) == (("France",), "Paris.", False)
    assert split_thoughts("<think>France", opened=True) == (("France",), "", True)
    assert split_thoughts(HARMONY + "Paris.", opened=True).answer == "Paris."


def test_own_tags() -> None:
    tags = [("Here is my thought process:", "Here is my response:")]
    text = "Here is my thought process: France. Here is my response: Paris."
    assert split_thoughts(text, tags) == ((" France. ",), "Paris.", False)
    assert split_thoughts(text).answer == text
    assert split_thoughts("<think>x</think>Paris.", tags).answer == "<think>x</think>Paris."
    assert split_thoughts("<think>x</think>Paris.", []).answer == "<think>x</think>Paris."


HALVES = [half for pair in THOUGHT_TAGS for half in pair]
WORDS = ["a", "B. ", " ", "\n", "`", "```\n", "\n```", "~~~\n", '"', "<", "assistantfinal", "analysis", "<|end|>",
         "<|start|>assistant", "<|channel|>final<|message|>", "<|return|>", "    "]  # fmt: skip
REPLIES = st.lists(st.sampled_from(HALVES + WORDS), max_size=14).map("".join)


@given(st.text(alphabet=st.characters(exclude_characters="<[\u25c1")), st.just(False))
@example("analysis of the assistant", False)
def test_a_text_without_tags_is_unchanged(text: str, opened: bool) -> None:
    if not (text.lstrip().startswith("analysis") and "assistantfinal" in text):
        assert split_thoughts(text, opened=opened) == ((), text, False)


@given(REPLIES, st.booleans())
@example("```\n<think>a\n```</think>```\n</think>\n```", False)
def test_stripping_twice_is_stripping_once(text: str, opened: bool) -> None:
    once = split_thoughts(text, opened=opened)
    assert split_thoughts(once.answer) == ((), once.answer, False)


def in_order(thought: str, text: str) -> bool:
    """Whether the text says all of the thought; what is said on several channels is joined by blank lines."""
    at = 0
    for piece in thought.split():
        if (found := text.find(piece, at)) < 0:
            return False
        at = found + len(piece)
    return True


@given(REPLIES)
@example("<|channel|>final<|message|><think><|start|>assistant")
@example("<|channel|>final<|message|><think><thinking><|return|><think>")
def test_nothing_is_made_up(text: str) -> None:
    parts = split_thoughts(text)
    if parts.thoughts:
        assert len(parts.answer) < len(text)
        assert parts.thoughts[0] in text or ("<|channel|>" in text and in_order(parts.thoughts[0], text))
    else:
        assert parts.answer == text or "<|channel|>" in text  # the marks around an answer go, too


@pytest.mark.parametrize(
    "text",
    ["<think></think>" * 20_000, "\n<think> x" * 30_000, "\n<think>\n" * 30_000, "a</think>" * 30_000,
     "<think>" * 50_000 + "</think>", "\n<think><think></think>" * 15_000, "`" * 200_000 + "<think>",
     "`</think>" * 30_000,
     "```\n" * 60_000 + "</think>", "<|channel|>analysis<|message|>" * 10_000, "<|end|><|start|>assistant" * 15_000],
    ids=range(11),
)  # fmt: skip
def test_long_texts_of_tags_take_no_time(text: str) -> None:
    started = time.process_time()
    split_thoughts(text)
    split_thoughts("x" + text)
    assert time.process_time() - started < 10  # quadratic work takes minutes

"""What a chat template may do to the judge's dialogue: system roles, dates, open thoughts, content in parts."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_templates
from text_tokenizers import byte_level

from latent_rewards import HFJudge, JudgePrompt, Need, Request
from latent_rewards.judge.encoding import Encoder

WEIGHTED, LIKERT = JudgePrompt.load("weighted"), JudgePrompt.load("likert10")
ROW = {"prompt": "Name a prime.", "completion": "7"}
HEAD = "{% for m in messages %}"
TURN = "<turn>{{ m['role'] }}\n{{ m['content'] }}</turn>\n"
TAIL = "{% endfor %}<turn>assistant\n"
DROPS = HEAD + "{% if m['role'] != 'system' %}" + TURN + "{% endif %}" + TAIL
RAISES = HEAD + "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURN + TAIL
FOLDS = (
    "{% set first = messages[0]['content'] %}{% for m in messages[1:] %}<turn>{{ m['role'] }}\n"
    "{{ '<<SYS>>\n' + first + '\n<</SYS>>\n\n' if loop.first else '' }}{{ m['content'] | trim }}</turn>\n" + TAIL
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<turn>system\nYou are helpful.</turn>\n{% endif %}" + HEAD + TURN + TAIL
)
PARTS = (
    HEAD + "<turn>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}</turn>\n" + TAIL
)
LAST = HEAD + "{% if m['role'] == 'user' %}" + TURN + "{% endif %}{% endfor %}" + (
    HEAD + "{% if m['role'] == 'system' %}<turn>system\n{{ m['content'] }}</turn>\n{% endif %}" + TAIL
)  # fmt: skip


def encoder(template: str, **kwargs: Any) -> Encoder:
    tok = byte_level()
    tok.add_tokens(["<think>", "</think>", "<seed:think>", "</seed:think>", "[THINK]", "[/THINK]"])
    tok.chat_template = template
    return Encoder(tok, **kwargs)


def text(enc: Encoder, prompt: JudgePrompt = WEIGHTED, row: dict[str, Any] | None = None) -> str:
    encoded = enc.encode([prompt.render(row or {s: ROW.get(s, "x") for s in prompt.slots})])[0]
    assert encoded.problem is None
    return str(enc.tokenizer.decode(encoded.ids))


@pytest.mark.parametrize(
    ("template", "role"),
    [
        (HEAD + TURN + TAIL, "its own"),
        (DROPS, "merged into the user turn"),
        (RAISES, "merged into the user turn"),
        (LAST, "merged into the user turn"),
        (FOLDS, "its own"),
        (DEFAULT, "its own"),
        (PARTS, "its own"),
    ],
)
@pytest.mark.parametrize("name", ["weighted", "verifier", "weighted_hardened", "weighted_reasoned", "likert5"])
def test_our_instructions_reach_the_judge(template: str, role: str, name: str) -> None:
    enc, prompt = encoder(template), JudgePrompt.load(name)
    found = text(enc, prompt)
    user = prompt.render({s: ROW.get(s, "x") for s in prompt.slots}).turns[-1]
    body = "".join(s.text for s in user.segments)
    assert found.count(prompt.system.strip()) == 1 and found.count(body) == 1 and "\ue002" not in found
    assert found.index(prompt.system.strip()) < found.index(body) and enc.system_role == role


CHANGES = ["upper", "lower", "e", "tojson", "striptags", "replace('\\n', ' ')", "replace('\\n\\n', '\\n')"]


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (HEAD + "{% if m['role'] == 'system' %}" + TURN + "{% endif %}" + TAIL, "drops text of the user turn"),
        (HEAD + TURN + TURN + TAIL, "repeats text"),
        (HEAD + "{{ m['content'][:30] }}" + TAIL, "drops text of the system and the user turn"),
        (HEAD + "{{ m.content | list | length }}" + TAIL, "drops text"),
        (HEAD + "{{ 1 + m['content'] }}" + TAIL, "unsupported operand"),
        ("{{ raise_exception('not for chat') }}", "not for chat"),
        *((HEAD + f"{{{{ m['content'] | {f} }}}}" + TAIL, "changes text of the user turn") for f in CHANGES),
    ],
)
def test_a_template_that_loses_text_is_named(template: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"drops, changes, repeats or reorders .*{what}.* set tokenizer.chat_template"):
        text(encoder(template))


DATED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
    "{% else %}{% set day = 'never' %}{% endif %}"
    '<turn>date {{ day }} | {{ strftime_now("%Y-%m-%d %-d %B %A %H:%M") }}</turn>\n' + HEAD + TURN + TAIL
)


def test_the_day_is_the_same_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for day in (25, 26):

        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> datetime.datetime:
                return datetime.datetime(2026, 11, day)

        monkeypatch.setattr(chat_templates, "datetime", Day)
        enc = encoder(DATED)
        stock = enc.tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        assert f"{day} Nov 2026" in stock, "else this shows nothing"
        found.append((text(enc), enc.layout_hash(WEIGHTED)))
    assert found[0] == found[1] and "date 26 Jul 2024 | 2024-07-26 26 July Friday 12:00</turn>" in found[0][0]


def test_a_day_that_the_user_gives_counts() -> None:
    llama = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    template = llama + "{{ date_string }}" + HEAD + TURN + TAIL
    assert text(encoder(template)).startswith("26 Jul 2024")
    assert text(encoder(template, chat_template_kwargs={"date_string": "1 May 2025"})).startswith("1 May 2025")
    assert text(encoder(DROPS, chat_template_kwargs={"chat_template": template})).startswith("26 Jul 2024")


def test_layout_hash_knows_what_surrounds_a_text() -> None:
    base = encoder(HEAD + TURN + TAIL)
    same = encoder(HEAD + TURN + TAIL).layout_hash(WEIGHTED)
    others = [
        base.layout_hash(JudgePrompt.load("verifier")),
        encoder(DROPS).layout_hash(WEIGHTED),
        encoder("x" + HEAD + TURN + TAIL).layout_hash(WEIGHTED),
        encoder(HEAD + TURN + TAIL + "{{ add }}", chat_template_kwargs={"add": "!"}).layout_hash(WEIGHTED),
    ]
    assert base.layout_hash(WEIGHTED) == same and len({same, *others}) == 5


THOUGHTS = [
    ("<think>\n", "<think>\n\n</think>\n\n"),
    ("<think>", "<think>\n\n</think>\n\n"),
    ("<seed:think>\n", "<seed:think>\n\n</seed:think>\n\n"),
    ("<thought>\n", "<thought>\n\n</thought>\n\n"),
    ("<reasoning>\n", "<reasoning>\n\n</reasoning>\n\n"),
    ("[THINK]", "[THINK][/THINK]"),
    ("<|START_THINKING|>", "<|START_THINKING|><|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|begin_of_thought|><|end_of_thought|>"),
    ("\u25c1think\u25b7", "\u25c1think\u25b7\u25c1/think\u25b7"),
    ("<|inner_prefix|>", "<|inner_prefix|><|inner_suffix|>"),
    ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
    ("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>"),
]


@pytest.mark.parametrize(("opened", "closed"), THOUGHTS)
def test_an_open_thought_is_closed_before_a_label(opened: str, closed: str) -> None:
    enc = encoder(HEAD + TURN + "{% endfor %}{{ " + repr(opened) + " }}")
    found = text(enc)
    assert found.endswith(closed), found[-60:]
    assert enc.thinking.startswith("closed by us after ")
    sampled = enc.encode([LIKERT.render(ROW)])[0]
    if not LIKERT.prefill:
        assert enc.tokenizer.decode(sampled.ids).endswith(opened), "a sampled answer may think first"


def test_a_thought_is_closed_before_the_start_of_an_answer() -> None:
    prompt = JudgePrompt.load("likert5")
    assert prompt.prefill
    found = text(encoder(HEAD + TURN + TAIL + "<think>\n"), prompt)
    assert found.endswith("<think>\n\n</think>\n\n" + prompt.prefill)


@pytest.mark.parametrize(
    ("tail", "end", "thinking"),
    [
        ("", "<turn>assistant", "no thought in the chat template"),
        ("{% if enable_thinking %}<think>\n{% endif %}", "<turn>assistant\n", "no thought"),
        ("{% if enable_thinking is not defined or enable_thinking %}<think>\n"
         "{% else %}<think>\n\n</think>\n\n{% endif %}", "<think>\n\n</think>\n\n",
         "switched by enable_thinking=False"),
        ("{% if thinking is not defined or thinking %}<think>\n{% endif %}", "assistant\n",
         "switched by thinking=False"),
        ("</think>", "assistant\n</think>", "no thought"),
        ("<|START_THINKING|>x<|END_THINKING|>", "<|END_THINKING|>", "no thought"),
    ],
)  # fmt: skip
def test_what_the_template_itself_does_is_left_alone(tail: str, end: str, thinking: str) -> None:
    enc = encoder(HEAD + TURN + TAIL + tail)
    assert text(enc).endswith(end) and enc.thinking.startswith(thinking)


def test_a_thought_without_a_known_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"opens a thought with '<\|think\|>'.*chat_template_kwargs"):
        text(encoder(HEAD + TURN + TAIL + "<|think|>"))


def test_a_template_that_needs_tokens_the_model_lacks(make_model: Any) -> None:
    tok = byte_level()
    model = make_model("llama", tok)
    size = len(tok)
    tok.add_tokens([*(f"<extra_{i}>" for i in range(4)), "Rhine"])
    judge = HFJudge(model, tokenizer=tok)
    rows = [{"prompt": "p", "completion": c} for c in ("<extra_3>", "the Rhine")]
    reading = judge.read([Request(WEIGHTED, rows, Need(labels=True))])[0]
    assert reading.reasons[0] is None and reading.label_logprobs.isnan().any(1).tolist() == [False, True]
    assert reading.reasons[1] == f"token id {size + 4}, but the judge's embedding has {size} rows"
    tok.chat_template = tok.chat_template.replace("<turn>assistant", "<extra_3>assistant")
    with pytest.raises(ValueError, match=rf"prompt 'weighted' need token id {size + 3}, but the judge's embedding has"):
        HFJudge(model, tokenizer=tok).read([Request(WEIGHTED, [ROW], Need(labels=True))])[0]

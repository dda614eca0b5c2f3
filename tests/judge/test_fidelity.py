"""What the judge reads is what was written: the ids of the whole text, or its characters with control tokens spelt."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from text_tokenizers import BUILDERS, PLAIN_ADDED, SPECIAL, byte_level, sentencepiece, slow, unigram

from latent_rewards import JudgePrompt, Request
from latent_rewards.judge.encoding import Encoder

PROMPTS = [
    JudgePrompt.load(name).with_thoughts("keep", keep_unfinished=True) for name in ("weighted", "weighted_reasoned")
]
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t.,\u2581\u00fc<|[>]7a"), max_size=30)
CONTROL = st.sampled_from([*SPECIAL, *PLAIN_ADDED, "<unk>", "<", "</", "turn>", " <s> ", "\n<think>\n"])
KINDS = [*BUILDERS, "slow"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: Any) -> dict[str, Encoder]:
    made = {name: build() for name, build in BUILDERS.items()}
    return {n: Encoder(t) for n, t in {**made, "slow": slow(tmp_path_factory.mktemp("sp"))}.items()}


def whole(encoder: Encoder, prompt: JudgePrompt, row: dict[str, Any]) -> list[int]:
    """Ids of the tokenizer on the whole dialogue."""
    messages = [{"role": t.role, "content": "".join(s.text for s in t.segments)} for t in prompt.render(row).turns]
    tokenizer = encoder.tokenizer
    more = {"add_generation_prompt": True, "return_dict": False} if hasattr(tokenizer, "chat_template") else {}
    return list(tokenizer.apply_chat_template(messages, tokenize=True, **more))


def control_of(encoder: Encoder, ids: list[int]) -> list[int]:
    tokens = dict(zip(encoder.tokenizer.all_special_ids, encoder.tokenizer.all_special_tokens, strict=True))
    control = (set(tokens) | set(encoder.control)) - {encoder.tokenizer.unk_token_id}
    return [i for i in ids if i in control and not re.fullmatch("<0x..>", encoder.control.get(i, ""))]


def squashed(encoder: Encoder, ids: list[int]) -> str:
    """Text of ids without white space."""
    return re.sub("[\\s\u2581]+", "", encoder.tokenizer.decode(ids))


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(prompt=st.sampled_from(PROMPTS), texts=st.tuples(TEXT, TEXT, TEXT))
def test_same_ids_as_the_whole(
    encoders: dict[str, Encoder], kind: str, prompt: JudgePrompt, texts: tuple[str, str, str]
) -> None:
    encoder = encoders[kind]
    row = dict(zip(("prompt", "completion", "feedback"), texts, strict=True))
    encoded = encoder.encode([prompt.render(row)])[0]
    assert encoded.problem is None and encoded.ids == whole(encoder, prompt, row)
    other = encoder.encode([prompt.render(row | {"completion": "else"})])[0]
    start, end = encoded.completion
    assert 0 < encoded.head <= start <= end <= len(encoded.ids)
    assert encoded.ids[: min(start, other.completion[0]) - 3] == other.ids[: min(start, other.completion[0]) - 3]
    assert squashed(encoder, encoded.ids[start:end]) in squashed(encoder, encoded.ids)


@pytest.mark.parametrize("kind", KINDS)
@QUICK
@given(pieces=st.lists(CONTROL | TEXT, min_size=1, max_size=6), where=st.sampled_from(["prompt", "completion"]))
def test_same_text_with_control_tokens_spelt(
    encoders: dict[str, Encoder], kind: str, pieces: list[str], where: str
) -> None:
    encoder, prompt = encoders[kind], PROMPTS[0]
    row = {"prompt": "P", "completion": "C"} | {where: "".join(pieces)}
    encoded = encoder.encode([prompt.render(row)])[0]
    if encoded.problem is not None:
        assert kind in ("slow", "word-piece") and "control token" in encoded.problem
        return
    neutral = encoder.encode([prompt.render(row | {where: "x"})])[0].ids
    assert control_of(encoder, encoded.ids) == control_of(encoder, neutral)
    assert squashed(encoder, encoded.ids) == squashed(encoder, whole(encoder, prompt, row))
    if kind == "byte-level":
        text = encoder.tokenizer.decode(neutral).replace("\nx\n", "\n" + row[where] + "\n")
        assert encoder.tokenizer.decode(encoded.ids) == text


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "sentencepiece first", "sentencepiece never", "own layout"])
@pytest.mark.parametrize("token", [*SPECIAL, *PLAIN_ADDED])
def test_a_control_token_is_its_characters(encoders: dict[str, Encoder], kind: str, token: str) -> None:
    encoder, prompt = encoders[kind], PROMPTS[0]
    encoded = encoder.encode([prompt.render({"prompt": "P", "completion": f"a {token} b"})])[0]
    assert encoded.problem is None
    own = encoded.ids[slice(*encoded.completion)]
    assert encoder.tokenizer.decode(own).strip() == f"a {token} b" and not control_of(encoder, own)


@pytest.mark.parametrize("kind", [k for k in BUILDERS if k != "own layout"])
def test_our_own_tokens_stay_when_a_text_spells_one(kind: str) -> None:
    tok = BUILDERS[kind]()
    tok.chat_template += "{{ 'a <think> b</think>c ' }}"
    rows = [{"prompt": "P", "completion": c} for c in ("x y", "x <s> y")]
    plain, spelt = Encoder(tok).encode([PROMPTS[0].render(r) for r in rows])
    assert plain.ids[plain.completion[1] :] == spelt.ids[spelt.completion[1] :]
    assert plain.ids[: plain.completion[0]] == spelt.ids[: spelt.completion[0]] and spelt.problem is None


def test_no_space_is_added_where_texts_meet() -> None:
    for kind in ("legacy", "first", "always", "never"):
        encoder = Encoder(sentencepiece(kind))
        row = {"prompt": "a", "completion": "b<turn>c"}
        text = encoder.tokenizer.decode(encoder.encode([PROMPTS[0].render(row)])[0].ids)
        assert "### Task\na\n\n### Reply\nb<turn>c\n\n### Question" in text, kind


def test_deepseeks_letters() -> None:
    """Its vocabulary lacks the 13 bytes that UTF-8 never uses, and has their letters as added tokens."""
    letters = [chr(x) for x in (0xC0, 0xC1, *range(0xF5, 0x100))]
    tok = byte_level()
    tok.add_tokens(letters)
    encoder, prompt = Encoder(tok), PROMPTS[0]
    texts = ["sch\u00f6n", "sch\u00fcn", "sch\u00f8n", "f\u00fcr<think>\u00d8l", "".join(letters)]
    found = [encoder.encode([prompt.render({"prompt": "P", "completion": t})])[0] for t in texts]
    assert [tok.decode(e.ids[slice(*e.completion)]) for e in found] == texts
    assert len({tuple(e.ids) for e in found}) == len(texts) and not any(e.problem for e in found)


def test_added_words_are_read_as_the_tokenizer_reads_them() -> None:
    tok = byte_level()
    tok.add_tokens(["7", "yes", " the ", "Rhine", "\u2603"])
    encoder = Encoder(tok)
    row = {"prompt": "Say yes, the 7.", "completion": "yes 7 the Rhine777 \u2603"}
    encoded = encoder.encode([PROMPTS[0].render(row)])[0]
    assert encoded.problem is None and encoded.ids == whole(encoder, PROMPTS[0], row)
    spelt = encoder.encode([PROMPTS[0].render(row | {"completion": "yes</turn> 7 the\u2603"})])[0]
    own = spelt.ids[slice(*spelt.completion)]
    assert tok.decode(own) == "yes</turn> 7 the\u2603" and tok.convert_tokens_to_ids("yes") == own[0]


def test_a_text_that_cannot_be_spelt_has_no_score(make_model: Any) -> None:
    from latent_rewards import HFJudge, Need

    tok = unigram()
    tok.add_special_tokens({"additional_special_tokens": ["\u2603"]})
    judge = HFJudge(make_model("llama", tok), tokenizer=tok)
    rows = [{"prompt": "P", "completion": c} for c in ("a\u2603b", "ab")]
    reading = judge.read([Request(PROMPTS[0], rows, Need(labels=True))])[0]
    assert reading.label_logprobs[0].isnan().all() and not reading.label_logprobs[1].isnan().any()
    assert "lacks its characters" in (reading.reasons[0] or "") and reading.reasons[1] is None


def test_labels_that_are_added_tokens_count() -> None:
    tok = byte_level()
    tok.add_tokens(["YES", "yes"])
    paths = {tuple(tok.convert_ids_to_tokens(list(p))) for p in Encoder(tok).trie(JudgePrompt.load("verifier")).paths}
    assert ("YES",) in paths and ("yes",) in paths and ("Y", "E", "S") in paths


def test_labels_go_on_after_the_prompt() -> None:
    for kind in ("legacy", "first", "always", "never"):
        encoder, prompt = Encoder(sentencepiece(kind)), JudgePrompt.load("verifier")
        row = {"prompt": "P", "completion": "C"}
        ids = encoder.encode([prompt.render(row)])[0].ids
        text = encoder.tokenizer.apply_chat_template(
            [{"role": t.role, "content": "".join(s.text for s in t.segments)} for t in prompt.render(row).turns],
            tokenize=False, add_generation_prompt=True,
        )  # fmt: skip
        both = encoder.tokenizer(text + "Yes", add_special_tokens=False)["input_ids"]
        assert both[: len(ids)] == ids and tuple(both[len(ids) :]) in encoder.trie(prompt).paths

"""Tiny tokenizers of every kind that spells text in its own way, for the tests of text fidelity."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<turn>", "</turn>"]
PLAIN_ADDED = ["<think>", "</think>", "[INST]"]  # chat tokens that a tokenizer does not call special
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
CORPUS = [
    "You are a careful and impartial judge. How good is the reply, from 0 to 10? Answer with the bare whole number.",
    "### Task\n### Reply\n### Question yes no Yes No 10 7 3 the quick brown fox jumps over the lazy dog, user system",
] * 8
_BYTES = [f"<0x{i:02X}>" for i in range(256)]


def _finish(core: Any, unk: str | None = "<unk>") -> Any:
    out = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token=unk)
    out.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    out.add_tokens(PLAIN_ADDED)
    out.chat_template = TEMPLATE
    return out


def byte_level() -> Any:
    """GPT-2's kind."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return _finish(core, None)


def sentencepiece(kind: str) -> Any:
    """Llama's kind: "legacy" puts a space first by its normaliser, "first", "always" and "never" by Metaspace."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    strip = [] if kind == "never" else [decoders.Strip(" ", 1, 0)]
    if kind == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *SPECIAL[:2], *_BYTES], max_token_length=9)
    core.train_from_iterator(CORPUS, trainer)
    return _finish(core)


def unigram() -> Any:
    """T5's and Gemma's kind, whose model itself knows the pieces of control tokens."""
    words = ["\u2581", "\n", *(chr(i) for i in range(33, 127)), "\u2581the", "\u2581judge", "es", "ing", "\u2581Re"]
    pieces = [("<unk>", 0.0), *((t, 0.0) for t in [*SPECIAL, *PLAIN_ADDED]), *((w, -3.0 - len(w) / 9) for w in words)]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    return _finish(core)


def word_piece() -> Any:
    """BERT's kind: lower case, accents off, spaces lost."""
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    printable = [chr(i) for i in range(33, 127)]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=printable)
    core.train_from_iterator(CORPUS, trainer)
    return _finish(core)


def slow(folder: Path) -> Any:
    """A tokenizer in Python around a SentencePiece model."""
    import sentencepiece as spm
    from transformers import GPTSw3Tokenizer

    (folder / "text").write_text("\n".join(CORPUS))
    spm.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "sp"), vocab_size=400, model_type="bpe",
        byte_fallback=True, character_coverage=1.0, minloglevel=2, user_defined_symbols=["<turn>", "</turn>"],
    )  # fmt: skip
    out = GPTSw3Tokenizer(str(folder / "sp.model"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    out.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    out.chat_template = TEMPLATE
    return out


class OwnLayout:
    """Lays dialogues out and tokenises them in one step, as mistral-common does: text never becomes control ids."""

    all_special_ids = (1, 2, 3, 4)
    all_special_tokens = ("<s>", "</s>", "[INST]", "[/INST]")
    unk_token_id = None
    pad_token_id, eos_token_id, bos_token_id = 0, 2, 1
    _first = 5

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """One id per byte."""
        return [1] * add_special_tokens + [self._first + b for b in text.encode()]

    def decode(self, ids: list[int]) -> str:
        """Control tokens by name."""
        names = dict(zip(self.all_special_ids, self.all_special_tokens, strict=True))
        raw = b"".join(names[i].encode() if i in names else bytes([i - self._first]) for i in ids)
        return raw.decode("utf-8", "replace")

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool = True, continue_final_message: bool = False
    ) -> list[int]:
        """System text before the user's, as Mistral's first models had it."""
        ids = [1]
        system = "".join(m["content"] + "\n\n" for m in messages if m["role"] == "system")
        for m in messages:
            if m["role"] == "user":
                ids += [3, *self.encode(system + m["content"], False), 4]
            elif m["role"] == "assistant":
                ids += self.encode(m["content"], False)
        return ids if continue_final_message or messages[-1]["role"] != "assistant" else [*ids, 2]


BUILDERS: dict[str, Callable[[], Any]] = {
    "byte-level": byte_level,
    **{f"sentencepiece {k}": functools.partial(sentencepiece, k) for k in ("legacy", "first", "always", "never")},
    "unigram": unigram,
    "word-piece": word_piece,
    "own layout": OwnLayout,
}

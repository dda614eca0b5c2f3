"""What a PEFT adapter brings besides its weights' values: names, files, tokenizer and chat template."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"
PICKLED = (
    "{} has no safetensors weights; a pickle can run code and is not loaded: where you trust it, load it once and save "
    "it with save_pretrained"
)


class Source(NamedTuple):
    """Where a judge comes from: a whole model, and an adapter on it or None; each with its revision."""

    model: str
    revision: str | None
    adapter: str | None
    adapter_revision: str | None = None


def find_source(model: str, revision: str | None, adapter: str | None) -> Source:
    """A model's name taken apart: that of an adapter stands for its base and the adapter.

    Raises:
        ValueError: two adapters, an adapter without the name of its base, or a folder with both model and adapter.
    """
    from transformers.utils import find_adapter_config_file

    file = find_adapter_config_file(model, revision=revision)
    if file is None:
        return Source(model, revision, adapter)
    if (Path(model) / "config.json").is_file():
        raise ValueError(
            f"{model} holds a whole model and an adapter, and does not say whether one is merged into the other; move "
            "the adapter to a folder of its own and give it as adapter=, or remove adapter_config.json where it is in"
        )
    if adapter is not None:
        raise ValueError(
            f"{model} is an adapter itself; HFJudge takes its base and one adapter, not adapter={adapter!r}"
        )
    said = json.loads(Path(file).read_text(encoding="utf-8"))
    base = said.get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{model} is an adapter that does not name its base: HFJudge(<its base>, adapter={model!r})")
    return Source(base, said.get("revision"), model, revision)


def adapter_weights(adapter: str, revision: str | None = None) -> Path:
    """The adapter's weights; those that are there as a pickle only are refused, PEFT would read them."""
    if Path(adapter).is_dir():
        file = Path(adapter) / WEIGHTS
        if not file.is_file():
            raise ValueError(PICKLED.format(adapter))
        return file
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(adapter, WEIGHTS, revision=revision))
    except EntryNotFoundError as err:
        raise ValueError(PICKLED.format(adapter)) from err


def adapter_tokenizer(
    base: PreTrainedTokenizerBase | None, source: Source, **options: bool
) -> PreTrainedTokenizerBase | None:
    """The tokenizer and chat template saved with the adapter, the base's where there are none.

    Args:
        base: the base's tokenizer, or None.
        source: names, for messages.
        options: of `from_pretrained`.

    Raises:
        ValueError: the adapter's tokenizer gives the base's tokens other ids, or neither has one.
    """
    from transformers import AutoTokenizer

    adapter, hub = str(source.adapter), {"revision": source.adapter_revision} if source.adapter_revision else {}
    if text_of(adapter, "tokenizer_config.json", **hub) is None:
        template = text_of(adapter, "chat_template.jinja", **hub)
        if base is not None and template is not None and template != base.chat_template:
            logger.warning("the chat template of %s is used, not that of %s", adapter, source.model)
            base.chat_template = template
        return base
    own = AutoTokenizer.from_pretrained(adapter, **hub, **options)
    if base is None:
        return own
    ours, theirs = own.get_vocab(), base.get_vocab()
    moved = [token for token, i in theirs.items() if ours.get(token, i) != i]
    kept = sum(token in ours for token in theirs)
    if moved or 2 * kept < len(theirs):
        what = f"{moved[0]!r} is {ours[moved[0]]} and {theirs[moved[0]]}" if moved else f"{kept} tokens in common"
        raise ValueError(
            f"the tokenizer of the adapter {adapter} is not that of {source.model} ({what}); give the base that the "
            "adapter was trained on, or remove the tokenizer files from the adapter's folder"
        )
    if not own.chat_template and base.chat_template:
        logger.warning("%s has a tokenizer without chat template; that of %s is used", adapter, source.model)
        own.chat_template = base.chat_template
    elif own.chat_template != base.chat_template:
        logger.warning("the chat template of %s is used, not that of %s", adapter, source.model)
    return own


def text_of(name: str, file: str, **hub: str) -> str | None:
    """A small file of a folder or hub repository; None where it is not there."""
    from transformers.utils import cached_file

    path = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False, **hub
    )
    return None if path is None else Path(path).read_text(encoding="utf-8")

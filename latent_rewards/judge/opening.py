"""Judges from what files say of them: one object for the same words, however many rewards name it."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from latent_rewards.engine.embedded import cache_folder
from latent_rewards.judge.reading import Judge

_open: weakref.WeakValueDictionary[str, Judge] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def open_judge(given: Judge | str | Mapping[str, Any]) -> Judge:
    """A judge from a model name, from arguments of `HFJudge`, or from `server` and arguments of `ServerJudge`.

    The same words give the same judge for as long as a reward holds it, so that it is loaded once.

    Args:
        given: a judge, which is given back; a name; or a mapping with one of the keys of `JUDGES`.

    Raises:
        ValueError: neither a name nor a mapping with such a key, or arguments that it does not take.
    """
    if not isinstance(given, str | Mapping):
        if callable(getattr(given, "read", None)):  # no isinstance, which would ask for its properties and load it
            return given
        raise ValueError(f"a judge is a model name, or a mapping with one of {sorted(JUDGES)}, got {given!r}")
    options = {"model": given} if isinstance(given, str) else dict(given)
    kinds = sorted(options.keys() & JUDGES.keys())
    if len(kinds) != 1:
        raise ValueError(f"a judge needs one of the keys {sorted(JUDGES)}, got {sorted(options)}")
    words = json.dumps([options, str(cache_folder())], sort_keys=True, default=repr)  # where "embedded" lies
    with _lock:
        found = _open.get(words)
        if found is None:
            found = _open[words] = _made(kinds[0], options)
    return found


def _made(kind: str, options: dict[str, Any]) -> Judge:
    home, _, name = JUDGES[kind].rpartition(".")
    first = options.pop(kind)
    try:
        made: Judge = getattr(import_module(home), name)(first, **options)
    except TypeError as err:
        raise ValueError(f"judge {first!r}: {err}") from err
    return made


# Key -> the class whose first argument it is; of a room further up, so it is looked up when it is asked for.
JUDGES = {
    "model": "latent_rewards.judge.hf.HFJudge",
    "server": "latent_rewards.serving.server_judge.ServerJudge",
}

"""A judge that is given by its name alone: the same one for all who name it, as long as any of them lives."""

from __future__ import annotations

import threading
import weakref

from latent_rewards.engine.embedded import cache_folder
from latent_rewards.judge.hf import HFJudge
from latent_rewards.judge.reading import Judge

_live: weakref.WeakValueDictionary[tuple[str, ...], HFJudge] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def as_judge(judge: Judge | str) -> Judge:
    """A judge; of a name, the `HFJudge` with default options that this process already has under it, if it is in use.

    So `ProbabilityWeightedReward("x")` and `VerifierReward("x")` load the model once and share their forwards. A judge
    of other options, or one that is moved or changed by itself, is made as `HFJudge(...)` and given as such.
    """
    if not isinstance(judge, str):
        return judge
    key = (judge, str(cache_folder()))  # where "embedded" lies
    with _lock:
        found = _live.get(key)
        if found is None:
            found = _live[key] = HFJudge(judge)
        return found

"""What a judge read and wrote last, so that several rewards on the same rows cost one forward."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from latent_rewards.judge.reading import Lens, Need, Reading

Answers = list[list[str | None]]


class Memory:
    """The last readings, as many as were ever asked for at once but at least four, and the last sampled answers."""

    def __init__(self) -> None:
        self._readings: OrderedDict[str, tuple[Need, Reading]] = OrderedDict()
        self._room = 4
        self._answers: tuple[object, Answers] | None = None

    def clear(self) -> None:
        """Forget everything."""
        self._readings.clear()
        self._answers = None

    def look(
        self, keys: Sequence[str], needs: Sequence[Need]
    ) -> tuple[dict[int, Reading], dict[tuple[str, Lens | None], list[int]]]:
        """Which of some requests are known, and which of the others one reading can serve.

        Args:
            keys: equal for requests of the same rows under the same prompt.
            needs: what each wants.

        Returns:
            Request number -> its reading; and for each group of the others their numbers.
        """
        known: dict[int, Reading] = {}
        todo: dict[tuple[str, Lens | None], list[int]] = {}
        for i, (key, need) in enumerate(zip(keys, needs, strict=True)):
            had = self._readings.get(key)
            if had is not None and had[0].covers(need):
                known[i] = had[1]
            else:
                todo.setdefault((key, need.hidden_lens if need.hidden else None), []).append(i)
        return known, todo

    def keep(self, key: str, need: Need, reading: Reading) -> None:
        """Keep what was read for a need."""
        self._readings[key] = need, reading
        self._readings.move_to_end(key)

    def trim(self, asked: int) -> None:
        """Let go of the oldest readings; `asked` is how many were asked for at once."""
        self._room = max(self._room, asked)
        while len(self._readings) > self._room:
            self._readings.popitem(last=False)

    def answers(self, key: object) -> Answers | None:
        """The answers that were sampled last, if it was for this."""
        return self._answers[1] if self._answers is not None and self._answers[0] == key else None

    def keep_answers(self, key: object, answers: Answers) -> Answers:
        """Keep answers, and give them back."""
        self._answers = key, answers
        return answers

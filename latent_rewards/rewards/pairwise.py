"""Replies read against each other, in both orders: of one prompt's group, or against opponents from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from latent_rewards import readouts
from latent_rewards.files.types import whole
from latent_rewards.judge.hf import Judge, Reading, Request
from latent_rewards.judge.reading import Row
from latent_rewards.rewards.games import Game, content_of, groups_of, in_both_orders, opponents_of, sigmoid, table_of
from latent_rewards.rewards.latent import UNKNOWN, LatentReward, ProbabilityWeightedReward
from latent_rewards.stats.strengths import bradley_terry, mean_win_log_odds, mean_win_rate

Opponents = Literal["group", "pivots", "anchors", "column"]
Strength = Literal["log_odds", "bradley_terry", "win_rate"]

ALONE = "alone: no other reply to this prompt was given with it"
NO_OPPONENT = "no opponent in column {!r}"
UNMET = "no readable comparison joins it to the other replies"


class PairwiseReward(LatentReward):
    """How strongly a reply beats other replies to the same prompt, read in both orders before anything is decided.

    d(a, b) = (l(a first) - l(b first)) / 2,  l = ln p("A") - ln p("B") with the named reply as A.

    So what the judge likes about a place cancels out, and d(b, a) = -d(a, b) exactly. Identical replies are compared
    with others once, tie with each other, and get the same score. A group is all rows of one call with the same prompt
    and the same further slots; in a trainer those of one process. Rewards of a group sum to zero in log-odds: only its
    order and distances count, as in GRPO's advantages.

    Args:
        judge: a judge, or a model name.
        opponents: "group": all other replies, N (N - 1) texts for N replies; "pivots": `count` replies drawn by their
            content, of at most 2 N `count` texts; "anchors": the `count` replies whose pointwise score is nearest to
            the group's median, for best and worst tell least; "column": the row's own in `column`.
        score: "log_odds": mean of d over the opponents, nats; "bradley_terry": strengths fitted to sigmoid(d), nats;
            "win_rate": mean of sigmoid(d), in 0..1. Replies that did not meet are placed by those that both met; see
            `latent_rewards.stats.strengths`.
        count: of pivots or anchors.
        column: dataset column with the row's opponent: a text, messages, or a list of several.
        by: pointwise reward that chooses anchors, on the same judge; default `ProbabilityWeightedReward`.
        **options: see `Reward`. `prompt` needs `{{ completion }}` (A) and `{{ other }}` (B), and labels with value 1
            for A and 0 for B.

    A reply alone with its prompt has no score (None), as has one whose comparisons cannot be read.

    Raises:
        ValueError: unknown options, or a prompt of another kind.

    Source: TrustJudge (arXiv 2509.21117) for both orders; Llm-verifier (arXiv 2607.05391) for pivots; arXiv 2603.16848
    for anchors in the middle of the field.
    """

    kind = "pairwise"
    default_prompt = "pairwise"
    by_row = False

    def __init__(
        self,
        judge: Judge | str = "embedded",
        *,
        opponents: Opponents = "group",
        score: Strength = "log_odds",
        count: int = 2,
        column: str = "reference",
        by: LatentReward | None = None,
        **options: Any,
    ) -> None:
        for name, value, known in (("opponents", opponents, _OPPONENTS), ("score", score, tuple(_STRENGTHS))):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")
        if opponents == "column" and score == "bradley_terry":
            raise ValueError(
                "opponents='column' is no group, for which strengths could be fitted; use 'log_odds' or 'win_rate'"
            )
        self.opponents, self.strength, self.count, self.column = opponents, score, whole(count, "count"), column
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        super().__init__(judge, **options)
        self.by: LatentReward | None = None
        if opponents == "anchors":
            self.by = (by or ProbabilityWeightedReward(self.judge))._as_part()
            if self.by.judge is not self.judge:
                raise ValueError("the reward that chooses anchors must be on the same judge object")

    def _prepare(self) -> None:
        if "other" not in self.prompt.slots or set(self.values) != {0.0, 1.0}:
            raise ValueError(
                f"prompt {self.prompt.name!r} compares nothing: PairwiseReward needs a {{{{ other }}}} slot beside "
                "{{ completion }}, and labels with value 1 for the first reply and 0 for the second"
            )
        super()._prepare()

    def options(self) -> dict[str, Any]:
        """Opponents, and how their comparisons become a score."""
        own = {"opponents": self.opponents, "score": self.strength, "count": self.count, "column": self.column}
        return own if self.by is None else {**own, "by": self.by.facts}

    @property
    def staged(self) -> bool:  # type: ignore[override]
        """Anchors are chosen by what was read of them."""
        return self.opponents == "anchors"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Slots of the prompt but the opponent's, what chooses anchors, and the opponents' column."""
        own = [s for s in self.prompt.slots if s != "other"]
        own += self.by.inputs if self.by is not None else ()
        return tuple(dict.fromkeys([*own, self.column] if self.opponents == "column" else own))

    @property
    def score_range(self) -> tuple[float, float]:
        """0 to 1 for win rates; log-odds and strengths have no ends."""
        return (0.0, 1.0) if self.strength == "win_rate" else (-np.inf, np.inf)

    def check_row(self, row: Row) -> None:
        """The row fills the prompt, and so do its opponents where a column has them."""
        given = opponents_of(row.get(self.column)) if self.opponents == "column" else []
        for other in given or [row.get("completion")]:
            self.prompt.render({**row, "other": other})

    def requests(self, rows: Sequence[Row]) -> list[Request]:
        """One request, with two texts for each comparison: either reply shown first."""
        texts = [text for game in self._games(rows) for text in self._both(rows, game)]
        return [Request(self.prompt, texts, self.need)]

    def scores_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> np.ndarray:
        """(B,) scores; NaN where a reply is alone or none of its comparisons could be read."""
        games, d, _ = self._read(rows, readings[0])
        out = np.full(len(rows), np.nan)
        if self.opponents == "column":
            for i in range(len(rows)):
                own = d[[g.a == i for g in games]]
                if (known := own[~np.isnan(own)]).size:
                    out[i] = known.mean() if self.strength == "log_odds" else sigmoid(known).mean()
            return out
        for group in groups_of(rows, self.prompt.slots):
            tied = not self.prompt.ends_in_thought(rows[group[0]]["completion"])
            out[group] = _STRENGTHS[self.strength](table_of(rows, group, games, d, tied))
        return out

    def reasons(self, rows: Sequence[Row], readings: Sequence[Reading]) -> list[str]:
        """Why a row has no score: it is alone, or what is said of the first of its comparisons."""
        games = self._games(rows)
        whys = [readings[0].reasons[2 * i] or readings[0].reasons[2 * i + 1] for i in range(len(games))]
        alone = NO_OPPONENT.format(self.column) if self.opponents == "column" else ALONE
        out = [alone] * len(rows)
        for group in (
            [[i] for i in range(len(rows))] if self.opponents == "column" else groups_of(rows, self.prompt.slots)
        ):
            keys = {i: content_of(rows[i]) for i in group}
            for i in group:
                same = {j for j in group if keys[j] == keys[i]}
                own = [why for g, why in zip(games, whys, strict=True) if g.a in same or g.b in same]
                if own or len(group) > 1:
                    out[i] = next((why for why in own if why), UNMET if not own else UNKNOWN)
        return out

    def facts_of(self, rows: Sequence[Row], readings: Sequence[Reading]) -> dict[str, Any]:
        """Comparisons of a reply, replies that were alone, and how far the place decides.

        `first_place`: mean P(first shown wins), 0.5 without a preference for a place; `orders_agree`: share of
        comparisons that both orders decide alike.
        """
        games, _, first = self._read(rows, readings[0])
        known = first[~np.isnan(first).any(1)]
        met = {i for g in games for i in (g.a, g.b)}
        alone = float(np.mean([i not in met for i in range(len(rows))]))
        metrics = {"comparisons": len(games) / len(rows), "alone": alone}
        if len(known):
            metrics["first_place"] = float(sigmoid(known).mean())
            metrics["orders_agree"] = float((np.sign(known[:, 0]) != np.sign(known[:, 1])).mean())
        return {"metrics": metrics}

    def _read(self, rows: Sequence[Row], reading: Reading) -> tuple[list[Game], np.ndarray, np.ndarray]:
        """The games, (G,) d of each, and (G, 2) log-odds of the first shown in both orders; nats."""
        return self._games(rows), *self.odds(reading)

    def odds(self, reading: Reading) -> tuple[np.ndarray, np.ndarray]:
        """(G,) log-odds d that the first reply of each comparison beats the second; and (G, 2) of the first shown.

        Args:
            reading: of 2 G texts, each comparison's two orders side by side.
        """
        assert reading.label_logprobs is not None
        first = readouts.log_odds(reading.label_logprobs, self.values).double().numpy().reshape(-1, 2)
        return (first[:, 0] - first[:, 1]) / 2, first

    def _games(self, rows: Sequence[Row]) -> list[Game]:
        """All comparisons of some rows, the same ones in whatever order the rows stand."""
        if self.opponents == "column":
            return [Game(i, -1, one) for i, row in enumerate(rows) for one in opponents_of(row.get(self.column))]
        anchored = self._anchor_scores(rows)
        out = []
        for group in groups_of(rows, self.prompt.slots):
            one_each = {content_of(rows[i]): i for i in reversed(group)}
            nodes = [one_each[key] for key in sorted(one_each)]
            chosen = set(self._chosen(rows, nodes, anchored))
            out += [
                Game(a, b, rows[b]["completion"])
                for at, a in enumerate(nodes)
                for b in nodes[at + 1 :]
                if a in chosen or b in chosen
            ]
        return out

    def _chosen(self, rows: Sequence[Row], nodes: list[int], anchored: np.ndarray | None) -> list[int]:
        """Those that all others meet; a reply that ends inside its thought is no measure for others."""
        if self.opponents == "group":
            return nodes
        whole = [i for i in nodes if not self.prompt.ends_in_thought(rows[i]["completion"])]
        if anchored is None:
            return whole[: self.count]
        known = [i for i in whole if not np.isnan(anchored[i])]
        middle = np.median(anchored[known]) if known else 0.0
        return sorted(known, key=lambda i: abs(anchored[i] - middle))[: self.count]

    def _anchor_scores(self, rows: Sequence[Row]) -> np.ndarray | None:
        """(B,) pointwise scores that choose anchors; the judge remembers them while the rows are the same."""
        if self.by is None or not rows:
            return None
        return self.by.scores_of(rows, self.judge.read(self.by.requests(rows)))

    def _both(self, rows: Sequence[Row], game: Game) -> list[dict[str, Any]]:
        row = {slot: rows[game.a][slot] for slot in self.prompt.slots if rows[game.a].get(slot) is not None}
        return in_both_orders({**row, "prompt": rows[game.a]["prompt"]}, rows[game.a]["completion"], game.opponent)


_OPPONENTS = ("group", "pivots", "anchors", "column")
_STRENGTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log_odds": mean_win_log_odds,
    "bradley_terry": bradley_terry,
    "win_rate": mean_win_rate,
}

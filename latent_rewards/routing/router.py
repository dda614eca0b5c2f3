"""Routing: predict each model's score from the prompt alone, and send the prompt to the best of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from latent_rewards.files import artefact
from latent_rewards.files.types import Prompt
from latent_rewards.routing.embeddings import EMBEDDER, embed_prompts
from latent_rewards.routing.predictors import Kind, choose, fit_predict, make_predictor


class Router:
    """Sends prompts to models; fitted on prompts whose responses have scores.

    Args:
        models: M model ids.
        kind: predictor, see `make_predictor`.
        k: neighbours of "knn".
        embedder: see `embed_prompts`.
        prices: model id -> price of a response, any unit; every model or none.
        price_weight: score units that one unit of price is worth; 0 ignores prices.

    Raises:
        ValueError: no models, repeated ids, prices of other models, or a weight without prices.

    Example:
        router = Router(["small", "large"], prices={"small": 1.0, "large": 8.0}, price_weight=0.01)
        router.fit(prompts, scores).save("runs/router")
        Router.load("runs/router").route(["What is 2 + 2?"])
    """

    def __init__(
        self,
        models: Sequence[str],
        *,
        kind: Kind = "knn",
        k: int = 50,
        embedder: str = EMBEDDER,
        prices: Mapping[str, float] | None = None,
        price_weight: float = 0.0,
    ) -> None:
        make_predictor(kind, k=k)
        if not models or len(set(models)) < len(models):
            raise ValueError(f"need at least one model and different ids, got {list(models)}")
        if prices is not None and set(prices) != set(models):
            raise ValueError(f"prices must name the models {sorted(models)}, got {sorted(prices)}")
        if price_weight and prices is None:
            raise ValueError("price_weight needs prices")
        self.models, self.kind, self.k, self.embedder = list(models), kind, int(k), embedder
        self.prices = None if prices is None else {m: float(prices[m]) for m in self.models}
        self.price_weight = float(price_weight)
        self.embeddings_: np.ndarray | None = None
        self.scores_: np.ndarray | None = None

    def fit(self, prompts: Sequence[Prompt], scores: np.ndarray, *, embeddings: np.ndarray | None = None) -> Router:
        """Keep the training prompts.

        Args:
            prompts: N strings or message lists.
            scores: (N, M) higher is better; NaN where unknown.
            embeddings: (N, H) of unit length, when they are there already.

        Raises:
            ValueError: shapes that do not fit, infinite scores, or no known score at all.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.shape != (len(prompts), len(self.models)):
            raise ValueError(f"expected scores of shape {(len(prompts), len(self.models))}, got {scores.shape}")
        if np.isinf(scores).any() or np.isnan(scores).all():
            raise ValueError("scores must be finite or NaN, and at least one must be known")
        found = embed_prompts(prompts, self.embedder) if embeddings is None else np.asarray(embeddings, np.float32)
        if len(found) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(found)} embeddings")
        self.embeddings_, self.scores_ = found, scores
        return self

    def predict(self, prompts: Sequence[Prompt], *, embeddings: np.ndarray | None = None) -> np.ndarray:
        """(Q, M) predicted scores."""
        if self.embeddings_ is None or self.scores_ is None:
            raise ValueError("the router is not fitted; call fit or Router.load first")
        queries = embed_prompts(prompts, self.embedder) if embeddings is None else embeddings
        return fit_predict(self.embeddings_, self.scores_, queries, kind=self.kind, k=self.k)

    def route(
        self, prompts: Sequence[Prompt], *, available: Sequence[str] | None = None, embeddings: np.ndarray | None = None
    ) -> list[str]:
        """The model id for each prompt.

        Args:
            prompts: Q strings or message lists.
            available: ids that may be chosen now; None is all.
            embeddings: (Q, H) of unit length, when they are there already.

        Raises:
            ValueError: an unknown id, or no available model has a known score.
        """
        unknown = sorted(set(available or ()) - set(self.models))
        if unknown:
            raise ValueError(f"unknown models {unknown}; the router knows {self.models}")
        usable = None if available is None else np.array([m in available for m in self.models])
        prices = None if self.prices is None else np.array([self.prices[m] for m in self.models])
        predicted = self.predict(prompts, embeddings=embeddings)
        index = choose(predicted, prices=prices, price_weight=self.price_weight, available=usable)
        if (index < 0).any():
            raise ValueError(f"no model can be chosen: none of {available or self.models} has a known score")
        return [self.models[i] for i in index]

    def save(self, folder: str | Path) -> None:
        """Write `router.json` and `router.safetensors`: settings, training embeddings and scores; no pickle.

        Raises:
            ValueError: not fitted.
        """
        if self.embeddings_ is None or self.scores_ is None:
            raise ValueError("the router is not fitted; there is nothing to save")
        keys = ("models", "kind", "k", "embedder", "prices", "price_weight")
        settings = {key: getattr(self, key) for key in keys}
        artefact.save(folder, "router", settings, {"embeddings": self.embeddings_, "scores": self.scores_})

    @classmethod
    def load(cls, folder: str | Path) -> Router:
        """A saved router; it predicts what the saved one did.

        Raises:
            FileNotFoundError: no router in that folder.
            ValueError: a damaged one, or one of another format.
        """
        with artefact.opened(folder, "router", "a saved router") as (settings, tensors):
            router = cls(settings.pop("models"), **settings)
            router.embeddings_, router.scores_ = (tensors[k].numpy() for k in ("embeddings", "scores"))
            return router

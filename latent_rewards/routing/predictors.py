"""From embeddings to each model's score, and from scores to the model that is chosen."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

Kind = Literal["knn", "ridge", "boosted"]


_LEAST_SIMILARITY = 1e-6


class Predictor(Protocol):
    """A regressor of scikit-learn, as far as it is used here."""

    def fit(self, X: np.ndarray, y: np.ndarray) -> Predictor:
        """Learn (N,) scores from (N, H) embeddings."""
        ...

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(Q,) scores of (Q, H) embeddings."""
        ...


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

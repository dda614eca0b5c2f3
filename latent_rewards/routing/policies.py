"""What routing is worth: out-of-fold predictions, R2 per model, and routed quality against simpler policies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latent_rewards.routing.predictors import Kind, choose, fit_predict
from latent_rewards.stats.bootstrap import Estimate, mean_estimate, statistic_estimate


def fold_numbers(n: int, folds: int, seed: int) -> np.ndarray:
    """(n,) fold of each prompt, shuffled, sizes differing by at most one.

    Raises:
        ValueError: fewer than two folds, or more folds than prompts.
    """
    if not 2 <= folds <= n:
        raise ValueError(f"need between 2 and {n} folds for {n} prompts, got {folds}")
    return np.random.default_rng(seed).permutation(np.arange(n) % folds)


def predict_out_of_fold(
    embeddings_NH: np.ndarray, scores_NM: np.ndarray, fold_N: np.ndarray, *, kind: Kind = "knn", k: int = 50
) -> np.ndarray:
    """(N, M) score of each model on each prompt, predicted from the prompts of the other folds."""
    out = np.full(scores_NM.shape, np.nan)
    for fold in np.unique(fold_N):
        test = fold_N == fold
        out[test] = fit_predict(embeddings_NH[~test], scores_NM[~test], embeddings_NH[test], kind=kind, k=k)
    return out


def mean_out_of_fold(scores_NM: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """(N, M) mean score of each model over the other folds: what is known without looking at the prompt."""
    out = np.full(scores_NM.shape, np.nan)
    for fold in np.unique(fold_N):
        train = scores_NM[fold_N != fold]
        known = ~np.isnan(train)
        total, count = np.where(known, train, 0.0).sum(0), known.sum(0)
        out[fold_N == fold] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out


def r_squared(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Coefficient of determination over pairs without NaN; NaN where the truth does not vary."""
    from sklearn.metrics import r2_score

    known = ~np.isnan(predicted) & ~np.isnan(truth)
    y = truth[known]
    return float(r2_score(y, predicted[known])) if len(y) and y.min() < y.max() else float("nan")


def r_squared_by_model(
    predicted_NM: np.ndarray, truth_NM: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> list[Estimate]:
    """R2 of each of M models with a bootstrap interval over prompts.

    Source: the measure of section 5.2 of Girrbach et al. 2025 (arXiv 2509.24678).
    """
    groups = np.arange(len(truth_NM))
    return [
        statistic_estimate(
            lambda rows, m=m: r_squared(predicted_NM[rows, m], truth_NM[rows, m]),  # type: ignore[misc]
            groups, n=int((~np.isnan(truth_NM[:, m])).sum()), resamples=resamples, seed=seed,
        )
        for m in range(truth_NM.shape[1])
    ]  # fmt: skip


def chosen_values(choice_N: np.ndarray, gold_NM: np.ndarray) -> np.ndarray:
    """(N,) gold score of the chosen model; NaN where the choice is -1 or has no gold."""
    picked = gold_NM[np.arange(len(gold_NM)), np.maximum(choice_N, 0)]
    return np.where(choice_N >= 0, picked, np.nan)


def compare_policies(
    predictions: dict[str, np.ndarray], mean_NM: np.ndarray, gold_NM: np.ndarray, *, resamples: int = 2000
) -> dict[str, dict[str, Estimate | dict[str, float]]]:
    """Gold quality of each routing policy, paired over the same prompts.

    A model without gold on a prompt gave no response there, so no policy may choose it.

    Args:
        predictions: name -> (N, M) predicted scores.
        mean_NM: (N, M) out-of-fold mean of the training signal; its argmax is the best single model.
        gold_NM: (N, M) gold scores; NaN where a model has no response.
        resamples: bootstrap draws over prompts.

    Returns:
        name -> {"quality": estimate, "gain": estimate of the difference to "best single"}; beside the predictions
        "best single", "random" (expectation of a uniform choice) and "oracle" (the best response of each prompt).
    """
    usable = ~np.isnan(gold_NM)
    values = {"best single": chosen_values(choose(mean_NM, available=usable), gold_NM)}
    values |= {n: chosen_values(choose(p, available=usable), gold_NM) for n, p in predictions.items()}
    count = usable.sum(1)
    values["random"] = np.where(count > 0, np.nansum(gold_NM, 1) / np.maximum(count, 1), np.nan)
    values["oracle"] = np.where(count > 0, np.where(usable, gold_NM, -np.inf).max(1), np.nan)
    groups = np.arange(len(gold_NM))
    return {
        name: {
            "quality": mean_estimate(v, groups, resamples=resamples),
            "gain": mean_estimate(v - values["best single"], groups, resamples=resamples),
        }
        for name, v in values.items()
    }


def quality_cost_curve(
    predicted_NM: np.ndarray, gold_NM: np.ndarray, prices_M: np.ndarray, weights: Sequence[float]
) -> list[dict[str, float]]:
    """Mean price and mean gold quality of the router at each price weight, with a 95 % interval of the quality."""
    usable, groups = ~np.isnan(gold_NM), np.arange(len(gold_NM))
    out = []
    for weight in weights:
        choice = choose(predicted_NM, prices=prices_M, price_weight=weight, available=usable)
        quality = mean_estimate(chosen_values(choice, gold_NM), groups)
        price = float(prices_M[choice[choice >= 0]].mean())
        found = {"price_weight": float(weight), "price": price, "quality": quality.value}
        out.append(found | {"low": quality.low, "high": quality.high})
    return out

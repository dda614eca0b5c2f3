"""How strong each of N replies is, from what some of their comparisons say."""

from __future__ import annotations

import numpy as np

_STEPS, _LONGEST = 200, 2.0  # of Newton's method: how many, and how long one is in nats


def mean_win_log_odds(d_NN: np.ndarray) -> np.ndarray:
    """Mean log-odds with which each reply beats the others; those that were not compared, through whom both met.

    theta = argmin sum over compared pairs of (theta_a - theta_b - d_ab)^2, times N / (N - 1). Where all pairs were
    compared that is (1 / (N - 1)) sum_b d_ab, the mean over the opponents.

    Args:
        d_NN: (N, N) log-odds that the row's reply beats the column's, nats; d_ba = -d_ab. NaN where not compared; the
            diagonal does not count.

    Returns:
        (N,) nats, mean 0 over those compared; NaN for replies that no chain of comparisons joins to the most others.

    Source: least squares on paired comparisons (Mosteller 1951); averaging log-odds before deciding: TrustJudge
    (arXiv 2509.21117).
    """
    out, joined, d, compared = _joined(d_NN)
    n = len(joined)
    if n < 2:
        return out
    if compared.sum() == n * (n - 1):
        out[joined] = d.sum(1) / (n - 1)
        return out
    laplacian = np.diag(compared.sum(1)) - compared
    out[joined] = np.linalg.lstsq(laplacian + np.ones((n, n)) / n, d.sum(1), rcond=None)[0] * n / (n - 1)
    return out


def bradley_terry(d_NN: np.ndarray, *, prior: float = 1e-3) -> np.ndarray:
    """Bradley-Terry strengths, the comparisons' win probabilities counted as shares of wins.

    theta = argmax sum over compared pairs of w_ab ln sigmoid(theta_a - theta_b) + w_ba ln sigmoid(theta_b - theta_a)
    - (prior / 2) sum_a theta_a^2,  w_ab = sigmoid(d_ab).

    Args:
        d_NN: as in `mean_win_log_odds`.
        prior: precision of the strengths; keeps those finite that win or lose everything.

    Returns:
        (N,) nats, mean 0 over those compared; NaN as in `mean_win_log_odds`.

    Source: Bradley and Terry 1952; soft wins: TrustJudge (arXiv 2509.21117).
    """
    out, joined, d, compared = _joined(d_NN)
    n = len(joined)
    if n < 2:
        return out
    wins, theta = _sigmoid(d), np.zeros(n)
    for _ in range(_STEPS):
        expected = _sigmoid(theta[:, None] - theta[None, :])
        slope = ((wins - expected) * compared).sum(1) - prior * theta
        spread = expected * (1 - expected) * compared
        step = np.linalg.solve(np.diag(spread.sum(1) + prior) - spread, slope)
        theta += np.clip(step, -_LONGEST, _LONGEST)
        if np.abs(step).max() < 1e-12:
            break
    out[joined] = theta - theta.mean()
    return out


def mean_win_rate(d_NN: np.ndarray) -> np.ndarray:
    """Mean probability with which each reply beats the others, by their strengths where they were not compared.

    Args:
        d_NN: as in `mean_win_log_odds`.

    Returns:
        (N,) in [0, 1], 0.5 for ties; NaN as in `mean_win_log_odds`.
    """
    n = len(d_NN)
    theta = mean_win_log_odds(d_NN)
    known = ~np.isnan(theta)
    scaled = theta * (known.sum() - 1) / max(1, known.sum())
    gap = np.where(np.isnan(d_NN), scaled[:, None] - scaled[None, :], d_NN)
    p = np.where(np.eye(n, dtype=bool) | ~known[None, :], np.nan, _sigmoid(gap))
    out = np.full(n, np.nan)
    if known.sum() > 1:
        out[known] = np.nanmean(p[known], axis=1)
    return out


def _joined(d_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """NaN for all, who is in the largest set that comparisons join, their (M, M) log-odds, and which are known."""
    n = len(d_NN)
    known = ~np.isnan(d_NN) & ~np.eye(n, dtype=bool)
    reach = known | np.eye(n, dtype=bool)
    for _ in range(n.bit_length()):
        reach = reach @ reach
    joined = np.flatnonzero(reach[reach.sum(1).argmax()]) if n else np.zeros(0, dtype=int)
    compared = known[np.ix_(joined, joined)]
    return np.full(n, np.nan), joined, np.where(compared, d_NN[np.ix_(joined, joined)], 0.0), compared


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))

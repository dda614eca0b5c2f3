"""The equations: from what a judge's forward gives to one score per completion. Pure functions on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Normalise = Literal["mean", "sum", "mean_probability", "probability"]


def expected_rating(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    """Expected rating under the judge's label distribution.

    score = sum_k v_k p_k,  p = softmax over the K label log-probabilities.

    Args:
        label_logprobs: (B, K) nats, float32; NaN marks an unknown label.
        values: (K,) rating of each label, in rating points.

    Returns:
        (B,) rating points in [min v, max v]; NaN where any label is unknown.

    Raises:
        ValueError: K differs between the two inputs.

    Source: Girrbach et al. 2025, eq. 1 (arXiv 2509.24678).
    """
    v_K = _values(label_logprobs, values)
    return (label_probs(label_logprobs) * v_K).sum(-1)


def label_probs(label_logprobs: Tensor) -> Tensor:
    """Distribution restricted to the labels: softmax of (B, K) log-probs; a row with an unknown label is all NaN."""
    return torch.softmax(label_logprobs.float(), dim=-1)


def p_yes(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    """P(yes) renormalised over the labels.

    p = sum of p_k over the labels with value 1,  p_k = softmax over the K label log-probabilities.

    Args:
        label_logprobs: (B, K) nats; the K labels are the spellings groups of yes and no.
        values: (K,) 1 for labels that mean yes, 0 for labels that mean no.

    Returns:
        (B,) in [0, 1]; NaN where any label is unknown.

    Raises:
        ValueError: K differs, or the values are not 0 and 1 with both present.

    Source: Girrbach et al. 2025, eq. 2.
    """
    return torch.sigmoid(log_odds(label_logprobs, values))


def log_odds(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    """Ln p(yes) - ln p(no): keeps resolution where P(yes) saturates.

    Args:
        label_logprobs: (B, K) nats.
        values: (K,) 1 for yes, 0 for no.

    Returns:
        (B,) nats, unbounded; NaN where any label is unknown.

    Raises:
        ValueError: K differs, or the values are not 0 and 1 with both present.

    Source: Girrbach et al. 2025, eq. 2, as log-odds.
    """
    v_K = _values(label_logprobs, values)
    if set(v_K.tolist()) != {0.0, 1.0}:
        raise ValueError(f"yes/no readout needs labels with values 0 and 1, got {v_K.tolist()}")
    logp = label_logprobs.float()
    return torch.logsumexp(logp[:, v_K == 1], -1) - torch.logsumexp(logp[:, v_K == 0], -1)


def variance(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    """Variance of the rating under the judge's label distribution: how little it commits itself.

    sum_k p_k (v_k - S)^2,  S = sum_k v_k p_k.

    Args:
        label_logprobs: (B, K) nats.
        values: (K,) rating of each label, in rating points.

    Returns:
        (B,) squared rating points, at least 0; NaN where any label is unknown.

    Raises:
        ValueError: K differs between the two inputs.
    """
    v_K = _values(label_logprobs, values)
    p_BK = label_probs(label_logprobs)
    mean_B1 = (p_BK * v_K).sum(-1, keepdim=True)
    return (p_BK * (v_K - mean_B1) ** 2).sum(-1)


def quantile(label_logprobs: Tensor, values: Sequence[float], q: float = 0.5) -> Tensor:
    """The lowest rating that is not exceeded with probability q or more; 0.5 is the median.

    Args:
        label_logprobs: (B, K) nats.
        values: (K,) rating of each label, in rating points.
        q: in (0, 1].

    Returns:
        (B,) one of the ratings; NaN where any label is unknown.

    Raises:
        ValueError: K differs, or q is not within its bounds.
    """
    if not 0 < q <= 1:
        raise ValueError(f"a quantile needs 0 < q <= 1, got {q}")
    v_K, order_K = torch.sort(_values(label_logprobs, values))
    p_BK = label_probs(label_logprobs)[:, order_K].double()
    reached = p_BK.cumsum(-1) >= min(q, 1.0) - 1e-9
    reached[:, -1] = True
    found = v_K[reached.int().argmax(-1)]
    return torch.where(p_BK.isnan().any(-1), torch.nan, found)


def mode(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    """(B,) the most probable rating, the lowest of several; NaN where any label is unknown. Arguments as `variance`."""
    v_K, order_K = torch.sort(_values(label_logprobs, values))
    p_BK = label_probs(label_logprobs)[:, order_K]
    return torch.where(p_BK.isnan().any(-1), torch.nan, v_K[p_BK.nan_to_num(-1.0).argmax(-1)])


def lower_bound(label_logprobs: Tensor, values: Sequence[float], k: float = 1.0) -> Tensor:
    """Expected rating less k standard deviations: what a judge that is unsure gives costs something.

    Args:
        label_logprobs: (B, K) nats.
        values: (K,) rating of each label, in rating points.
        k: standard deviations.

    Returns:
        (B,) rating points; may lie below the lowest rating. NaN where any label is unknown.
    """
    return expected_rating(label_logprobs, values) - k * variance(label_logprobs, values).sqrt()


def cross_layer(
    layer_label_logits: Tensor,
    values: Sequence[float],
    *,
    weights: Tensor | None = None,
    drop_last: bool = False,
) -> Tensor:
    """Expected rating of label logits averaged over layers, then one softmax.

    z_k = sum_l w_l z_lk,  p = softmax(z),  score = sum_k v_k p_k. Logits are averaged, not probabilities.

    Args:
        layer_label_logits: (B, L+1, K) label logits on the states after blocks 0..L (0 is the embedding).
        values: (K,) rating of each label, in rating points.
        weights: (L+1,) or, with `drop_last`, (L,); None is uniform. Used as given: no softmax here.
        drop_last: leave out the last layer, as the official code does.

    Returns:
        (B,) rating points; NaN where any logit is unknown.

    Raises:
        ValueError: K or the number of weights does not fit.

    Source: Lai et al. 2025, LAGER, eq. for z and S; `drop_last` follows their reference code.
    """
    logits = layer_label_logits.float()
    if drop_last:
        logits = logits[:, :-1]
    n = logits.shape[1]
    w_L = torch.full((n,), 1.0 / n) if weights is None else torch.as_tensor(weights, dtype=torch.float32)
    if w_L.shape != (n,):
        raise ValueError(f"expected {n} layer weights, got {tuple(w_L.shape)}")
    return expected_rating(torch.einsum("l,blk->bk", w_L.to(logits.device), logits), values)


def entropy(label_logprobs: Tensor) -> Tensor:
    """Entropy of the label distribution, (B,) nats: how undecided the judge is."""
    logp = torch.log_softmax(label_logprobs.float(), dim=-1)
    return -torch.special.xlogy(logp.exp(), logp.exp()).sum(-1)


def likelihood(target_logprobs: Tensor, normalise: Normalise = "mean") -> Tensor:
    """Likelihood of a text from the log-probabilities of its tokens.

    l_t = ln p(y_t | all before it), T tokens: "mean" (1/T) sum_t l_t; "sum" sum_t l_t; "mean_probability"
    (1/T) sum_t exp(l_t); "probability" exp(sum_t l_t).

    Args:
        target_logprobs: (B, T) nats; NaN behind the last token of a text.
        normalise: which.

    Returns:
        (B,) nats or probabilities, float64; NaN of a text without tokens. Sums are exactly rounded, so that what other
        texts are beside one does not matter.

    Source: GPTScore (arXiv 2302.04166) for the mean, RLPR (arXiv 2506.18254) for the mean probability, VeriFree (arXiv
    2505.21493) for the probability.
    """
    texts = [row[~row.isnan()].tolist() for row in target_logprobs]
    return torch.tensor([NORMALISED[normalise](x) if x else math.nan for x in texts], dtype=torch.float64)


def _values(label_logprobs: Tensor, values: Sequence[float]) -> Tensor:
    v_K = torch.as_tensor(list(values), dtype=torch.float32, device=label_logprobs.device)
    if label_logprobs.shape[-1] != len(v_K):
        raise ValueError(f"{label_logprobs.shape[-1]} label log-probabilities but {len(v_K)} label values")
    return v_K


# Log-probabilities of a text's tokens -> one number; see `likelihood`.
NORMALISED: dict[Normalise, Callable[[list[float]], float]] = {
    "mean": lambda x: math.fsum(x) / len(x),
    "sum": math.fsum,
    "mean_probability": lambda x: math.fsum(map(math.exp, x)) / len(x),
    "probability": lambda x: math.exp(math.fsum(x)),
}

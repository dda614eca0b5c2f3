"""Linear fits in passes over blocks of rows: what scikit-learn's fits minimise, without all rows in memory.

SciPy's L-BFGS-B minimises; only the loss and its gradient are summed here. States are not standardised one by one: a
weight on standardised inputs is folded into one on the states as they are, before each pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from latent_rewards.probes.states import States, StoredStates, read, spans

logger = logging.getLogger(__name__)

Direction = tuple[np.ndarray, np.ndarray]
Loss = Callable[[np.ndarray, slice], tuple[float, np.ndarray]]


@dataclass
class Design:
    """Inputs of a linear model: states, or differences of two states, standardised, one direction taken out.

    Attributes:
        x: (N, P) states.
        mean: (P,) shift; unused for differences.
        scale: (P,) divisor.
        direction: (c, u) as `probe_training` finds them: z becomes z - (u z) c.
        rows: (n,) rows of `x`; all by default.
        minus: (n,) rows to subtract.
        extra: (n,) one more input, or None.
    """

    x: States
    mean: np.ndarray
    scale: np.ndarray
    direction: Direction | None = None
    rows: np.ndarray | None = None
    minus: np.ndarray | None = None
    extra: np.ndarray | None = None
    _held: np.ndarray | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All inputs, not standardised, float64, block by block; of states in memory one block, made once."""
        if isinstance(self.x, StoredStates):
            yield from ((span, self._block(span)) for span in spans(self.x, len(self)))
            return
        if self._held is None:
            self._held = self._block(slice(0, len(self)))
        yield slice(0, len(self)), self._held

    def _block(self, span: slice) -> np.ndarray:
        block = read(self.x, span if self.rows is None else self.rows[span]).astype(np.float64)
        return block if self.minus is None else block - read(self.x, self.minus[span])

    def fold(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(A, P) weights on inputs -> (A, P) weights on states and (A,) offsets."""
        if self.direction is not None:
            c, u = self.direction
            weight = weight - np.outer(weight @ c, u)
        weight = weight / self.scale
        return weight, np.zeros(len(weight)) if self.minus is not None else -weight @ self.mean

    def unfold(self, gradient: np.ndarray, total: np.ndarray) -> np.ndarray:
        """Gradient by the weights on inputs from (A, P) that on states and (A,) the sum over rows."""
        if self.minus is None:
            gradient = gradient - np.outer(total, self.mean)
        gradient = gradient / self.scale
        if self.direction is not None:
            c, u = self.direction
            gradient = gradient - np.outer(gradient @ u, c)
        return gradient


def fit(
    design: Design, loss: Loss, weight_sum: float, strength: float, *, outputs: int = 1, intercept: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise sum(loss) / W + |w|^2 / (2 C W) over the weights w; the intercept is free.

    Args:
        design: n inputs.
        loss: (n', A) margins of some rows and which rows -> their summed loss, and its (n', A) derivative.
        weight_sum: W, the sum of the rows' weights.
        strength: C.
        outputs: A.
        intercept: whether there is one.

    Returns:
        (A, P) weights on the states as they are and (A,) biases; the weight on `design.extra` is dropped.
    """
    inputs = design.x.shape[1]
    width = inputs + (design.extra is not None)
    decay = 1.0 / (strength * weight_sum)

    def split(params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        whole = params.reshape(outputs, width + intercept)
        return whole[:, :width], whole[:, width] if intercept else np.zeros(outputs)

    def value(params: np.ndarray) -> tuple[float, np.ndarray]:
        w, bias = split(params)
        on_states, offset = design.fold(w[:, :inputs])
        summed, slope = 0.0, np.zeros((outputs, inputs))
        total, by_extra = np.zeros(outputs), np.zeros(outputs)
        for rows, block in design.blocks():
            margin = block @ on_states.T + (offset + bias)
            if design.extra is not None:
                margin += np.outer(design.extra[rows], w[:, inputs])
            part, by = loss(margin, rows)
            summed += part
            slope += by.T @ block
            total += by.sum(0)
            if design.extra is not None:
                by_extra += by.T @ design.extra[rows]
        columns = [design.unfold(slope, total)]
        columns += [by_extra[:, None]] if design.extra is not None else []
        gradient = np.hstack(columns) / weight_sum + decay * w
        if intercept:
            gradient = np.hstack([gradient, total[:, None] / weight_sum])
        return summed / weight_sum + decay * (w * w).sum() / 2, gradient.ravel()

    start = np.zeros(outputs * (width + intercept))
    settings = {"maxiter": 2000, "maxfun": 4000, "maxls": 50, "gtol": 1e-8, "ftol": 64 * np.finfo(float).eps}
    found = minimize(value, start, jac=True, method="L-BFGS-B", options=settings)
    if found.status == 1:
        logger.warning("the linear fit stopped after %d passes, not converged: lower `strength`", found.nfev)
    w, bias = split(found.x)
    on_states, offset = design.fold(w[:, :inputs])
    return on_states, bias + offset


def logistic(target: np.ndarray, weight: np.ndarray) -> Loss:
    """Weighted logistic loss of (n, A) targets -1 and 1, with (n, A) weights."""

    def loss(margin: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
        t, w = target[rows], weight[rows]
        away = -t * margin
        return float((w * np.logaddexp(0, away)).sum()), -t * w * expit(away)

    return loss


def squares(target: np.ndarray, weight: np.ndarray) -> Loss:
    """Half the weighted squared error of (n, A) targets, with (n, 1) weights."""

    def loss(margin: np.ndarray, rows: slice) -> tuple[float, np.ndarray]:
        error = margin - target[rows]
        return float((weight[rows] * error**2).sum()) / 2, weight[rows] * error

    return loss

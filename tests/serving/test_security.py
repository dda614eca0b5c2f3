"""What others wrote cannot run code, leave its folder, or keep a machine busy; docs/security.md says the same."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from latent_rewards import HFJudge, JudgePrompt
from latent_rewards.evaluation.benchmarks import local
from latent_rewards.evaluation.benchmarks.remote import GitHub
from latent_rewards.export.checkpoints import _tensor_files
from latent_rewards.files.cache import Cache, _unpack
from latent_rewards.files.sources import open_source
from latent_rewards.judge.prompts import prompt_folder
from latent_rewards.probes.examples import read_examples
from latent_rewards.probes.features import Features
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.probe import Probe
from latent_rewards.rewards.calibrated import Calibration
from latent_rewards.rewards.layer_weights import LayerWeights

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "latent_rewards").rglob("*.py")) + sorted((ROOT / "recipes").rglob("*.py"))


# No pickle, no code.

FORBIDDEN = {
    "pickle.load", "pickle.loads", "torch.load", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "shelve.open", "marshal.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval",
    "exec", "compile", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle", "numpy.load", "np.load",
}  # fmt: skip


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_nothing_in_the_package_unpickles_or_runs_text() -> None:
    assert len(SOURCES) > 60
    found = [f"{p.name}: {name}" for p in SOURCES for name, _ in calls(p) if name in FORBIDDEN]
    assert not found
    shells = [p.name for p in SOURCES for _, call in calls(p) for k in call.keywords if k.arg == "shell"]
    assert not shells


def test_the_search_would_find_it(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import torch\ntorch.load('x')\n")
    assert [name for name, _ in calls(tmp_path / "x.py") if name in FORBIDDEN] == ["torch.load"]


def test_remote_code_is_off_wherever_it_can_be_asked_for() -> None:
    for path in SOURCES:
        if path.name == "loaders.py":
            continue  # a program that loads a folder we wrote as verl does, which trusts it; nothing imports it to load
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert not (isinstance(node.value, ast.Constant) and node.value.value), path
    judge = HFJudge("any/name")
    assert judge._load_options["trust_remote_code"] is False


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def bombs(mark: Path) -> list[bytes]:
    """A plain pickle, and what torch.save makes of it."""
    saved = mark.with_suffix(".pt")
    torch.save(Bomb(mark), saved)
    data = saved.read_bytes()
    saved.unlink()
    return [pickle.dumps(Bomb(mark)), data]


LOADERS: dict[str, tuple[tuple[str, ...], Callable[[Path], Any]]] = {
    "probe": (("probe.json", "probe.safetensors", "prompt.yaml"), Probe.load),
    "probe weights": (("probe.safetensors",), Probe.load),
    "calibration": (("calibration.json", "calibration.safetensors"), Calibration.load),
    "calibration weights": (("calibration.safetensors",), Calibration.load),
    "layers": (("layers.json", "layers.safetensors"), LayerWeights.load),
    "layer weights": (("layers.safetensors",), LayerWeights.load),
    "panel": (("panel.json",), Panel.load),
    "features": (("features.json", "shard-00000.safetensors"), lambda p: Features(p).states([1])),
    "feature shard": (("shard-00000.safetensors",), lambda p: Features(p).states([1])),
    "prompt": (("mine.yaml",), lambda p: JudgePrompt.load(p / "mine.yaml")),
    "rows": (("x.jsonl.gz",), lambda p: open_source(str(p / "x.jsonl.gz"))),
    "parquet": (("x.parquet",), lambda p: open_source(str(p / "x.parquet"))),
    "benchmark": (("x.jsonl",), lambda p: local.load(p / "x.jsonl")),
    "examples": (("x.jsonl",), lambda p: read_examples(p / "x.jsonl")),
    "cache": (("readings-0.sqlite",), lambda p: Cache(p)),
}


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_every_loader_refuses_a_pickle(tmp_path: Path, name: str) -> None:
    from benchmarks.fuzz import files

    (tmp_path / "here").mkdir()
    hurt, load = LOADERS[name]
    for data in bombs(tmp_path / "mark"):
        for saved in files._saved().values():
            for other, whole in saved.items():
                (tmp_path / "here" / other).write_bytes(whole)
        for file in hurt:
            (tmp_path / "here" / file).write_bytes(data)
        with pytest.raises((ValueError, OSError)):
            load(tmp_path / "here")
    assert not (tmp_path / "mark").exists()
    pickle.loads(bombs(tmp_path / "mark")[0])
    assert (tmp_path / "mark").exists(), "else this shows nothing"


def test_blobs_of_the_cache_are_arrays_or_json(tmp_path: Path) -> None:
    for data in bombs(tmp_path / "mark"):
        with pytest.raises(Exception):  # noqa: B017  whatever it is, nothing ran
            _unpack(data)
    assert not (tmp_path / "mark").exists()


def test_a_judge_is_read_from_safetensors_only(tmp_path: Path, folder: str) -> None:
    for data in bombs(tmp_path / "mark"):
        judge = tmp_path / "judge"
        shutil.copytree(folder, judge, dirs_exist_ok=True)
        (judge / "model.safetensors").unlink()
        (judge / "pytorch_model.bin").write_bytes(data)
        with pytest.raises(ValueError, match="no safetensors weights"):
            _ = HFJudge(str(judge)).blocks
    assert not (tmp_path / "mark").exists()


def test_an_adapter_is_read_from_safetensors_only(tmp_path: Path, folder: str) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    adapter = tmp_path / "adapter"
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    assert HFJudge(folder, adapter=str(adapter)).n_layers
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(bombs(tmp_path / "mark")[1])
    with pytest.raises(ValueError, match="no safetensors weights"):
        _ = HFJudge(folder, adapter=str(adapter)).blocks
    assert not (tmp_path / "mark").exists()


EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class EvilConfig(LlamaConfig): pass
class EvilModel(LlamaForCausalLM): pass
"""


def test_code_beside_the_weights_does_not_run(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, mark = tmp_path / "judge", tmp_path / "mark"
    shutil.copytree(folder, judge)
    (judge / "evil.py").write_text(EVIL.format(mark=str(mark)))
    config = json.loads((judge / "config.json").read_text())
    names = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.EvilModel",
        "AutoTokenizer": ["evil.X", None],
    }
    for kind in ("llama", "evil"):
        (judge / "config.json").write_text(json.dumps({**config, "auto_map": names, "model_type": kind}))
        fresh = HFJudge(str(judge))
        try:
            _ = fresh.encoder, fresh.blocks
        except (ValueError, OSError) as err:
            assert kind == "evil", err
        assert not mark.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with contextlib.suppress(Exception):
        _ = HFJudge(str(judge), trust_remote_code=True).blocks
    assert mark.exists(), "else this shows nothing"


# Prompt files and what stands in them.

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ prompt.__class__.__init__.__globals__ }}",
    "{{ prompt|attr('__class__') }}",
    "{{ (prompt,)[0]|attr('slot') }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner }}{{ joiner.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self }}",
    "{{ namespace(x=1) }}",
    "{{ range(10**9)|list }}",
    "{{ range(99999)|join }}",
    "{{ 'x' * 10**10 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ [1] * 10**9 }}",
    "{{ '%0999999999d' % 1 }}",
    "{{ ('x' ~ 'y') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for c in prompt %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = prompt %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% block prompt %}{% endblock %}",
    "{% call lipsum() %}{% endcall %}",
    "{% filter upper %}x{% endfilter %}",
    "{% do prompt %}",
    "{% if prompt.x %}{% endif %}",
    "{% if prompt == 'x' %}{% endif %}",
    "{% if prompt is defined %}{% endif %}",
    "{{ 1 if range else 2 }}{{ range() }}",
    "{{ prompt[0] }}",
    "{{ prompt() }}",
    "{{ {} }}",
    "{{ -prompt }}",
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_prompt_file_cannot_do_more_than_fill_slots(tmp_path: Path, escape: str) -> None:
    path = tmp_path / "evil.yaml"
    raw = {"kind": "label", "labels": {"a": 1, "b": 0}, "body": "{{ prompt }} {{ completion }} " + escape}
    path.write_text(yaml.safe_dump(raw))
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"evil\.yaml: "):
        JudgePrompt.load(path)
    assert time.monotonic() - started < 5, "refused before it runs"


def test_what_a_prompt_file_may_do(tmp_path: Path) -> None:
    body = (
        "{# a note #}{{ prompt }} {{ completion }}{% if note and not draft or note %} {{ note }}{% else %} -{% endif %}"
        "{{ 'x' if note else 'y' }}{% raw %}{{ 7 * 7 }}{% endraw %}"
    )
    path = tmp_path / "mine.yaml"
    raw = {"kind": "label", "labels": {"a": 1, "b": 0}, "body": body, "optional": ["note", "draft"]}
    path.write_text(yaml.safe_dump(raw))
    prompt = JudgePrompt.load(path)
    rows = [{"prompt": "P", "completion": "C"}, {"prompt": "P", "completion": "C", "note": "{{ 7 * 7 }}"}]
    texts = ["".join(s.text for t in prompt.render(row).turns for s in t.segments) for row in rows]
    assert texts == ["P C -y{{ 7 * 7 }}", "P C {{ 7 * 7 }}x{{ 7 * 7 }}"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [id]", "!!python/name:os.system", "!evil x"])
def test_prompt_files_are_plain_yaml(tmp_path: Path, tag: str) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"kind: label\nbody: {tag}\n")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        JudgePrompt.load(path)


# Paths.


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "model.bin"])
def test_an_index_cannot_point_out_of_its_folder(tmp_path: Path, file: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "x.safetensors", "b": file}})
    )
    with pytest.raises(ValueError, match="must be safetensors files beside it"):
        _tensor_files(tmp_path)


def test_features_name_no_files(tmp_path: Path) -> None:
    from benchmarks.fuzz import files

    for name, data in files._saved()["features"].items():
        (tmp_path / name).write_bytes(data)
    found = Features(tmp_path)
    assert [s.parent for s in found._shards] == [tmp_path]
    raw = json.loads((tmp_path / "features.json").read_text())
    del raw["sha256"]
    for rows, shard_rows in ((10**15, 0), (-5, 4), (3, "../"), (True, 1)):
        (tmp_path / "features.json").write_text(json.dumps({**raw, "rows": rows, "shard_rows": shard_rows}))
        with pytest.raises(ValueError, match="not a description of features"):
            Features(tmp_path)


@pytest.mark.parametrize("revision", ["../../../etc", "..", "a/b", "main?x", "", "-x", "a b"])
def test_a_revision_is_a_name(revision: str) -> None:
    source = GitHub("owner/repo", "0" * 40, "x.json")
    if not revision:
        assert source.at(revision) is source
        return
    with pytest.raises(ValueError, match="no commit, tag or branch"):
        source.at(revision)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "pairwise/../../secret", "*"])
def test_names_of_local_benchmarks_stay_in_their_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "data" / "pairwise").mkdir(parents=True)
    monkeypatch.setenv("LATENT_REWARDS_DATA", str(tmp_path / "data"))
    assert local.find(name) is None


def test_shipped_prompts_are_within_their_folder() -> None:
    assert all(p.resolve().parent == prompt_folder().resolve() for p in prompt_folder().glob("*.yaml"))

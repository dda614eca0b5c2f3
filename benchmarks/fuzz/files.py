"""Fuzz targets that load files: judge prompts, rows, benchmarks, probes, calibrations, layer weights, features."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.fuzz.draw import KEYS, Draw, damaged
from benchmarks.fuzz.words import check_dialogue
from latent_rewards.evaluation.benchmarks import Benchmark, local
from latent_rewards.files.outputs import open_output
from latent_rewards.files.seal import sealed
from latent_rewards.files.sources import InputError, open_source
from latent_rewards.judge.prompts import JudgePrompt
from latent_rewards.judge.reading import Reading
from latent_rewards.probes.collect import write_shard
from latent_rewards.probes.examples import Example, read_examples
from latent_rewards.probes.features import FeatureInfo, Features
from latent_rewards.probes.panel import Panel
from latent_rewards.probes.probe import Probe, ProbeConfig
from latent_rewards.probes.questions import Question, features_of
from latent_rewards.rewards.calibrated import Calibration
from latent_rewards.rewards.layer_weights import LayerWeights


@functools.cache
def workplace() -> Path:
    """A folder for the files of this process, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="fuzz.", dir=memory if os.access(memory, os.W_OK) else None))


BODY = "Task: {{ prompt }}\nReply: {{ completion }}\n{% if note %}{{ note }}{% endif %}"
SNIPPETS = (
    "{{ ''.__class__.__mro__ }}", "{{ prompt.__class__ }}", "{{ prompt | attr('__class__') }}", "{{ self }}",
    "{{ cycler.__init__.__globals__ }}", "{{ lipsum() }}", "{{ range(10**9) | list }}", "{{ 'a' * 10**10 }}",
    "{{ 9**9**9 }}", "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% include 'x' %}", "{% import 'x' as y %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set prompt = 1 %}", "{% if note %}", "{% endif %}", "{% else %}", "{{ note }}", "{{ completion }}",
    "{% if not note %}{{ completion }}{% endif %}", "{{ prompt }}", "{% raw %}", "{{", "}}", "{#", "(" * 300,
    "\ue000note\ue001", "{% if " + "not " * 400 + "note %}{% endif %}", "{% if note %}" * 60 + "{% endif %}" * 60,
    "{{ loop }}", "{{ note if note }}", "{{ 'x' if note else 'y' }}", "{% filter upper %}x{% endfilter %}",
    "{{ dict }}", "{{ True }}", "{{ -note }}",
)  # fmt: skip
TEXTS = (
    "", "x", "a: b", "*a", "&a [1]", "!!python/object/apply:os.system [id]", "[" * 40, ".nan", ".inf", "1e999", "yes",
    "~", "[1, 10]", "[9, 1]", "'(\\d+)'", "'\\d'", "'(('", "{a: 1, b: 0}", "{a: 1, b: .nan}", "{a: 1, a: 2}",
    "[a, b]", "{1: 1, 2: 2}", "{'a': 1, 'b': 1" + "0" * 400 + "}", "{? [1] : 2}", "generate", "label", "[note]", "true",
)  # fmt: skip
FIELDS = (
    "kind", "body", "system", "prefill", "labels", "spellings", "scale", "pattern", "completion", "optional", "name",
    "x",
)  # fmt: skip


def prompt_file(d: Draw) -> None:
    """A broken, hostile or odd prompt file: a ValueError that starts with its path, or a prompt that renders."""
    body = BODY
    for _ in range(d.number(0, 2)):
        at = d.number(0, len(body))
        body = body[:at] + d.choice(SNIPPETS) + body[at:]
    keys = {"kind": "label", "body": json.dumps(body), "labels": "{a: 1, b: 0}", "optional": "[note]"}
    for _ in range(d.number(0, 2)):
        keys[d.choice(FIELDS)] = d.choice(TEXTS)
    data = "".join(f"{k}: {v}\n" for k, v in keys.items()).encode("utf-8", "surrogatepass")
    path = workplace() / "prompt.yaml"
    path.write_bytes(damaged(d, data) if d.flag(4) else data)
    try:
        prompt = JudgePrompt.load(path)
    except ValueError as err:
        assert str(err).startswith(f"{path}: ") and len(str(err)) < 2000, str(err)[:300]
        return
    assert len(prompt.hash) == 16
    row = {slot: d.text() for slot in prompt.slots}
    check_dialogue(prompt, row, prompt.render(row))
    other = prompt.render({**row, "completion": "another"})
    assert (
        not prompt.completion or not row["completion"] or other != prompt.render(row) or row["completion"] == "another"
    )


def lines(d: Draw) -> None:
    """JSON Lines, plain or gzip, whole or broken: an InputError, or as many rows out as lines in, none changed."""
    rows = d.several(lambda: {d.choice(KEYS): d.value(2) for _ in range(d.number(0, 4))} if d.flag() else d.value(2), 5)
    text = "".join(json.dumps(r) + d.choice(("\n", "\r\n", "\n\n", "")) for r in rows)
    data = text.encode("utf-8", "surrogatepass")
    data = damaged(d, data) if d.flag() else data
    packed = d.flag()
    path = workplace() / ("in.jsonl.gz" if packed else "in.jsonl")
    if packed:
        data = _gzip(data)
        data = damaged(d, data) if d.flag() else data
    path.write_bytes(data)
    size = d.number(1, 3)
    try:
        source = open_source(str(path))
        chunks = list(source.chunks(size))
    except InputError as err:
        assert str(path) in str(err)
        return
    got = [r for c in chunks for r in c.rows]
    faults = [f for c in chunks for f in c.faults]
    wanted = [x for x in (gzip.decompress(data) if packed else data).split(b"\n") if x.strip()]
    assert len(got) == len(faults) == source.total == len(wanted)
    _round_trip(source, chunks, got)


def _round_trip(source: Any, chunks: list[Any], rows: list[dict[str, Any]]) -> None:
    out = workplace() / "out.jsonl"
    with open_output(out, source, ["new score"]) as write:
        for chunk in chunks:
            write(chunk, {"new score": [None] * len(chunk.rows)})
    back = [json.loads(x) for x in out.read_bytes().splitlines()] if rows else []
    wanted = json.loads(json.dumps(rows), parse_constant=lambda _: None)  # NaN and infinity are no JSON
    assert [{k: v for k, v in r.items() if k != "new score"} for r in back] == wanted


def _gzip(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as file:
        file.write(data)
    return out.getvalue()


@functools.cache
def _table() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": f"p{i}", "completion": "c" * i, "tags": [str(i)], "n": i / 7} for i in range(40)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=16, write_page_checksum=True)
    return out.getvalue()


def parquet(d: Draw) -> None:
    """A damaged Parquet file: an InputError, or all rows that its footer promises."""
    path = workplace() / "in.parquet"
    path.write_bytes(damaged(d, _table()) if d.flag(8) is False else _table())
    try:
        source = open_source(str(path))
        rows = [r for c in source.chunks(d.number(1, 50)) for r in c.rows]
    except InputError as err:
        assert str(path) in str(err)
        return
    assert len(rows) == source.total


NEAR = {
    "pair": {"prompt": "p", "chosen": "good", "rejected": "bad", "scale": [1, 5]},
    "rating": {"prompt": "p", "response": "r", "score": 3, "scale": [1, 5]},
    "list": {"prompt": [{"role": "user", "content": "p"}], "responses": ["a", "b"], "gold": [1, 0]},
}


def benchmark(d: Draw) -> None:
    """Benchmark and training files of near-miss rows: a ValueError with the file's name, or finite gold throughout."""
    near = d.choice(list(NEAR.values()))
    rows = [{**near, **{d.choice(KEYS): d.value(2) for _ in range(d.number(0, 2))}} for _ in range(d.number(1, 4))]
    data = "".join(json.dumps(r) + "\n" for r in rows).encode("utf-8", "surrogatepass")
    data = damaged(d, data) if d.flag(3) else data
    packed = d.flag(4)
    path = workplace() / ("bench.jsonl.gz" if packed else "bench.jsonl")
    path.write_bytes((damaged(d, _gzip(data)) if d.flag(3) else _gzip(data)) if packed else data)
    try:
        made: Benchmark | None = local.load(path)
    except ValueError as err:
        assert str(path) in str(err) or "'bench'" in str(err), err
        made = None
    for item in made.items if made else ():
        assert item.responses and len(item.responses) == len(item.gold) and np.isfinite(item.gold).all()
        assert all(isinstance(r, str) and r.strip() for r in item.responses) and item.group
    assert made is None or made.gold_range is None or np.isfinite(made.gold_range).all()
    try:
        examples = read_examples(path)
    except ValueError as err:
        assert str(path) in str(err), err
        return
    assert all(np.isfinite(e.label) for e in examples), examples


@functools.cache
def _saved() -> dict[str, dict[str, bytes]]:
    """The files of one of each kind, as its `save` writes them."""
    folder = Path(tempfile.mkdtemp(dir=workplace()))
    prompt = JudgePrompt.load("weighted")
    rng = torch.Generator().manual_seed(0)
    config = ProbeConfig("tiny", "r", prompt.hash, (1, 2), 4, architecture="mlp", outputs=("a",), training={"n": 3})
    tensors = {n: torch.randn(s, generator=rng) for n, s in
               {"weight": (3, 8), "bias": (3,), "out_weight": (1, 3), "out_bias": (1,)}.items()}  # fmt: skip
    Probe(config, tensors, prompt).save(folder / "probe")
    Calibration.fit([0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 1.0, 2.0], method="isotonic").save(folder / "calibration")
    LayerWeights(torch.tensor([0.25, 0.75]), "tiny", "r", prompt.hash, "raw").save(folder / "layers")
    asked = Question("weighted", prompt)
    features = features_of([asked], ["mean", "sd"])
    columns = (np.array([0.5, -1.0]), np.array([3.0, 1.0]), np.ones(2))
    Panel((asked,), features, *columns, bias=0.25, judge="tiny", revision="r").save(folder / "panel")
    _features(folder / "features", prompt)
    return {p.name: {f.name: f.read_bytes() for f in p.iterdir()} for p in sorted(folder.iterdir())}


def _features(folder: Path, prompt: JudgePrompt) -> None:
    folder.mkdir()
    rows = [Example("p", f"c{i}", 1.0, i, "s") for i in range(3)]
    info = FeatureInfo("tiny", "r", "weighted", prompt.hash, (1,), "normed", (), "float32", "f" * 16, 3, 4, ("s",))
    (folder / "features.json").write_text(json.dumps(sealed(vars(info))))
    hidden = {1: torch.arange(12.0).reshape(3, 4)}
    write_shard(folder / "shard-00000.safetensors", Reading(hidden=hidden, reasons=(None,) * 3), rows, info)


def _load_features(folder: Path) -> Any:
    found = Features(folder)
    return [found.states(found.info.layers).tobytes(), found.column("label").tobytes(), len(found)]


def _load_probe(folder: Path) -> Any:
    probe = Probe.load(folder)
    return [probe(torch.linspace(-1, 1, 8)[None]).tolist(), vars(probe.config), probe.prompt.hash]


def _load_panel(folder: Path) -> Any:
    panel = Panel.load(folder)
    return [panel(np.array([[1.0, 2.0]])).tolist(), panel.facts, panel.judge, panel.revision, panel.scales.tolist()]


def _load_calibration(folder: Path) -> Any:
    return Calibration.load(folder).predict([-1.0, 0.4, 2.5, 9.0]).tolist()


def _load_layers(folder: Path) -> Any:
    found = LayerWeights.load(folder)
    return [found.weights.tolist(), found.judge, found.revision, found.prompt_hash, found.lens, found.drop_last]


LOADERS: dict[str, Callable[[Path], Any]] = {
    "probe": _load_probe, "calibration": _load_calibration, "layers": _load_layers, "features": _load_features,
    "panel": _load_panel,
}  # fmt: skip


def saved(d: Draw) -> None:
    """A damaged probe, calibration or set of layer weights: a clear error, or exactly what was saved."""
    kind = d.choice(list(LOADERS))
    files = _saved()[kind]
    folder = workplace() / "saved"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    hurt = d.choice(sorted(files))
    for name, data in files.items():
        (folder / name).write_bytes(damaged(d, data) if name == hurt else data)
    try:
        got = LOADERS[kind](folder)
    except (ValueError, FileNotFoundError) as err:
        assert str(folder) in str(err), err
        return
    assert repr(got) == repr(_intact(kind)), "damage that went unnoticed"


@functools.cache
def _intact(kind: str) -> Any:
    folder = Path(tempfile.mkdtemp(dir=workplace()))
    for name, data in _saved()[kind].items():
        (folder / name).write_bytes(data)
    return LOADERS[kind](folder)


TARGETS = {"prompt_file": prompt_file, "lines": lines, "parquet": parquet, "benchmark": benchmark, "saved": saved}

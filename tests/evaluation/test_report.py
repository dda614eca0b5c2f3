import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from latent_rewards.evaluation import benchmarks, summary
from latent_rewards.evaluation.analysis import Analysis
from latent_rewards.evaluation.report import html, plots
from latent_rewards.evaluation.report import write as report
from latent_rewards.evaluation.run import SCHEMA
from latent_rewards.evaluation.scorers import Column

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }} \x00 \ud800 🙂"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def scored(path, rows):
    path.write_text("\n".join(json.dumps(r) for r in rows))
    b = benchmarks.load(path)
    rng = np.random.default_rng(0)
    n = sum(len(i.responses) for i in b.items)
    samples = rng.integers(1, 6, (n, 4)).astype(float)
    scores = rng.random(n)
    scores[0] = np.nan
    columns = {
        "weighted": Column(10 * scores, (0, 10)),
        "probe:a/b": Column(rng.normal(size=n)),
        "likert5/one": Column(samples[:, 0], (1, 5)),
        "likert5/mean": Column(samples.mean(1), (1, 5), samples),
    }
    return Analysis(b, columns, resamples=100)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"prompt": f"q{i}", "chosen": f"good {EVIL} {i}", "rejected": "bad" * (i % 3 + 1)} for i in range(20)]
    ratings = [{"prompt": f"q{i}", "response": "x" * (i + 1), "score": i % 5, "scale": [0, 4]} for i in range(20)]
    lists = [{"prompt": f"q{i}", "responses": ["a", "bb", "ccc", EVIL], "gold": [i % 3, 1, 2, 3]} for i in range(20)]
    parts = {"pairs": [*pairs, {"prompt": EVIL}], "ratings": ratings, "lists": lists}
    analyses = [scored(folder / f"{name}.jsonl", rows) for name, rows in parts.items()]
    stages = {"read weighted": {"texts": 1, "tokens": 2, "seconds": 0.5}}
    return {
        "schema": SCHEMA,
        "run": {"config": {}, "judge": EVIL, "judge_revision": "abc", "prompts": {}, "versions": {}},
        "benchmarks": [a.to_dict() for a in analyses],
        "summary": summary.summarise(analyses),
        "stability": {"weighted": {"repeat": 0.0, "batch_of_one": None, "reversed_order": 1e-7, "spread": 1.0}},
        "robustness": {},
        "consistency": {},
        "cost": {"stages": stages, "wall_seconds": 1.0, "peak_memory_mib": 1.0, "peak_gpu_memory_mib": 0.0},
    }


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    paths = report.write(results, out)
    assert {p.name for p in paths} == {
        "results.json", "report.md", "report.html", "metrics.png", "histograms.png", "mode_agreement.png",
    }  # fmt: skip
    assert all(p.stat().st_size > 500 for p in paths)
    return out


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_json_round_trips_and_another_schema_is_refused(results, folder, tmp_path):
    assert report.load(folder)["summary"] == results["summary"]
    (tmp_path / "results.json").write_text('{"schema": "other/1"}')
    with pytest.raises(ValueError, match="schema 'other/1'"):
        report.load(tmp_path)


def test_the_page_is_self_contained_and_escapes_everything(folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 1
    assert not any(t in ("img", "link", "iframe") for t, _ in page.tags)
    assert not any(k in ("src", "href") or k.startswith("on") for _, attrs in page.tags for k in attrs)
    assert "http" not in re.sub(r"<pre>.*?</pre>", "", text, flags=re.S) and "@import" not in text
    assert "49" not in "".join(page.text).split("{{ 7*7 }}")[0][-30:] and "{{ 7*7 }}" in text


def test_every_figure_on_the_page_stands_beside_length(results, folder):
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r">length</text>", text)) == 3 + 1  # a benchmark each, and the legend of best of n
    assert "class=length" in text
    for name in ("weighted", "probe:a/b", "likert5/mean"):
        value = results["summary"]["pair"]["scorers"][name]["accuracy"]["value"]
        assert f">{value:.3f}<small>" in text, name
    assert "1 bad rows" in text and "missing field chosen, rejected" in text


def test_markdown_tables_are_rectangular_and_name_length(results, folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^\|.*\n)+", text, re.M)
    assert len(blocks) == 3 + 3 + 1
    for block in blocks:
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}
        assert len(widths) == 1
    assert all("| length |" in block for block in blocks[:-1])
    assert "1 bad rows" in text
    assert "- pairs: 1 of 21 rows left out (row 21: missing field" in text and "\n\n- row 21: missing field" in text


def test_names_split_into_reward_and_column():
    assert plots.split("likert10:bare/mean") == ("likert10:bare", "mean")
    assert plots.split("probe:runs/probe") == ("probe:runs/probe", "")
    tint = plots.colours(["weighted", "weighted/argmax", "probe:a/b", "length"])
    assert (
        tint["weighted"] == tint["weighted/argmax"] != tint["probe:a/b"]
        and plots.of_page(tint["length"]) == "var(--muted)"
    )


def test_pictures_survive_nothing_to_draw(results):
    none = {"value": None, "low": None, "high": None, "n": 0}
    length = {"metrics": {"accuracy": none}}
    assert "No figure" in html._intervals(
        {"name": "x", "primary": "accuracy", "scorers": {"length": length}}, {"length": "red"}
    )
    lists = {"name": "x", "kind": "list", "scorers": {"a": {"best_of_n": {"n": [], "gold": [], "oracle": []}}}}
    assert "No list" in html._best_of_n({"benchmarks": [lists]}, {"a": "red"})[0][1]


def test_pictures_escape_names_take_the_colours_of_the_page_and_tell_their_parts():
    one = {"value": 0.5, "low": None, "high": None, "n": 1}
    made = plots.svg(lambda ax: plots.intervals(ax, [("<a> $x$", one, plots.COLOURS[0])], 0.5), "<b>", size=(3, 1))
    assert made.startswith("<svg ") and "<title>&lt;a&gt; $x$: 0.500, n = 1</title>" in made
    assert "<a>" not in made and "<b>" not in made and "http" not in made
    assert plots.COLOURS[0] not in made and "var(--s1)" in made


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(folder, tmp_path, width):
    """The table is sorted by script, nothing is wider than the window, no error is logged."""
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth - innerWidth,"
        "sorted: [...document.querySelectorAll('#all tbody tr')].map(r => Number(r.cells[1].dataset.v)),"
        "heads: document.querySelectorAll('#all th[aria-sort]').length}); });</script></body>"
    )
    page = tmp_path / "page.html"
    page.write_text((folder / "report.html").read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    frame = tmp_path / "frame.html"  # headless windows have a smallest width; a frame has none
    frame.write_text(f"<iframe src=page.html style='width:{width}px;height:800px;border:0'></iframe>"
                     "<script>addEventListener('load', () => setTimeout(() => { document.title = "
                     "document.querySelector('iframe').contentDocument.title }, 300))</script>")  # fmt: skip
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--allow-file-access-from-files", f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=4000",
             "--dump-dom", f"file://{frame}"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout.decode("utf-8", "replace"), re.S)
    assert title, done.stdout[:2000]
    told = json.loads(title[1])
    assert told["wide"] <= 0
    assert told["sorted"] == sorted(told["sorted"], reverse=True) and len(told["sorted"]) == 5
    assert told["heads"] == 1


def test_the_command_names_what_is_wrong(tmp_path):
    import typer

    from latent_rewards.cli import evaluate as cli_evaluate

    app = typer.Typer()
    app.command()(cli_evaluate.evaluate)
    wrong = tmp_path / "x.yaml"
    wrong.write_text("judgee: a\n")
    for args, message in (
        (["--benchmarks", "nope"], "no benchmark 'nope'"),
        (["--benchmarks", "nope/*"], "no benchmark fits"),
        (["--config", str(wrong)], "unknown keys"),
    ):
        done = CliRunner().invoke(app, [*args, "--output", str(tmp_path / "out")])
        assert done.exit_code == 2 and message in done.output, done.output

"""The report: runs as found on disk, McNemar's test, the paper's tables, and the page that is written."""

import html.parser
import json
import math
import re

import pytest

from codd_jax.evaluation.comparison import mcnemar_exact, pair, pairings
from codd_jax.evaluation.paper_form import ablation, latency, paper_tables
from codd_jax.evaluation.paper_tables import ABLATION, ACCURACY, FURTHER_DREAM, LATENCY, AblationKey, AccuracyKey
from codd_jax.evaluation.report import write_report
from codd_jax.evaluation.report_document import Details, Heading, Paragraph, Table, to_html, to_markdown
from codd_jax.evaluation.report_sections import ordered
from codd_jax.evaluation.runs import find_runs, read_run
from experiments import report
from tests.oracles.recorded_runs import record_run

CODD = {"coupling": "latent", "pc_temperature": 0.1}


@pytest.mark.parametrize(
    ("first", "second", "value"),
    # By hand: binomial tails over powers of two.
    [(0, 0, 1.0), (3, 3, 1.0), (0, 5, 2 / 32), (1, 5, 2 * 7 / 64), (2, 8, 2 * 56 / 1024), (8, 2, 2 * 56 / 1024)],
)
def test_mcnemar_by_hand(first, second, value):
    assert mcnemar_exact(first, second) == pytest.approx(value, rel=1e-12)


def test_mcnemar_of_a_thousand_coins_and_of_nonsense():
    from scipy.stats import binomtest

    assert mcnemar_exact(400, 1200) == pytest.approx(binomtest(400, 1600).pvalue, rel=1e-9)
    assert 0 < mcnemar_exact(0, 1000) < 1e-290 and math.isfinite(mcnemar_exact(0, 5000))
    with pytest.raises(ValueError, match="no counts"):
        mcnemar_exact(-1, 2)


def test_the_papers_tables_agree_with_each_other_and_with_its_text():
    assert (len(ACCURACY), len(FURTHER_DREAM), len(LATENCY), len(ABLATION)) == (132, 72, 27, 82)
    # Section 6.3 names these; the best cells of the ablation are cells of tables 1 and 6.
    assert ACCURACY[AccuracyKey("dream", True, "entropy", "gsm8k", 64)] == 56.41
    gain = [ACCURACY[AccuracyKey("llada", coupled, "low_confidence", "mbpp", 128)] for coupled in (True, False)]
    assert gain[0] - gain[1] == pytest.approx(6.8)
    for family, task, table in (("llada", "gpqa", ACCURACY), ("dream", "mbpp", FURTHER_DREAM)):
        for steps in (256, 128, 64):
            orders = {key.remasking for key in ABLATION if key.task == task}
            for order in orders:
                cells = [v for k, v in ABLATION.items() if (k.task, k.steps, k.remasking) == (task, steps, order)]
                assert max(cells) == table[AccuracyKey(family, True, order, task, steps)]
    assert ABLATION[AblationKey("llada", "gpqa", 256, "random", 0.2, 0.6)] == 26.34
    assert LATENCY["dream", "latent", "math500", 256] == 12.35
    overhead = LATENCY["llada", "any_order", "math500", 64] / LATENCY["llada", "backbone", "math500", 64] - 1
    assert overhead == pytest.approx(0.2692, abs=5e-4)


def test_pairs_differ_by_the_circuit_alone(tmp_path):
    alone = record_run(tmp_path / "alone", [1, 1, 0, 0, 1])
    together = record_run(tmp_path / "together", [1, 0, 1, 1, 1], **CODD)
    record_run(tmp_path / "other_seed", [1] * 5, seed=1, **CODD)
    record_run(tmp_path / "other_steps", [1] * 5, steps=32, **CODD)
    runs, _ = find_runs([tmp_path])
    (made,), unmatched = pairings(runs)
    assert (made.baseline.path, made.coupled.path) == (alone, together)
    assert (made.both, made.only_baseline, made.only_coupled, made.neither) == (2, 1, 2, 0)
    assert (made.count, made.left_out, made.gain) == (5, 0, 0.2)
    assert made.p_value == 1.0
    assert {run.name for run in unmatched} == {"other_seed", "other_steps"}


def test_pairs_compare_what_both_have_finished_and_were_asked_alike(tmp_path):
    baseline = read_run(record_run(tmp_path / "alone", [1, 0, 1]))
    coupled = read_run(record_run(tmp_path / "together", [1, 1], **CODD))
    made = pair(baseline, coupled)
    assert (made.count, made.left_out) == (2, 1)
    for sample in coupled.samples.values():
        sample["prompt_digest"] = "another"
    assert pair(baseline, coupled) is None


def test_a_run_says_what_it_is(tmp_path):
    run = read_run(record_run(tmp_path / "0shot_dream_gsm8k", [1, 0], family="dream", limit=2, pc_frac=None, **CODD))
    assert (run.status, run.method, run.accuracy, run.pace) == ("first 2 problems", "CoDD", 0.5, "64 steps")
    assert (run.tokens_per_pass, run.tokens_per_second, run.seconds_per_sample) == (200 / 128, 50.0, 2.0)
    assert not run.registered
    partial = record_run(tmp_path / "b", [1, 0, 1], summary=False, threshold=0.9, cache="dual", coupling="any_order")
    (partial / "samples.jsonl").write_text((partial / "samples.jsonl").read_text() + '{"doc_id": 3, "rep')
    run = read_run(partial)
    assert (run.status, run.method, run.pace) == ("partial: 3 so far", "CoDD, any-order", "threshold 0.9, dual cache")
    refreshed = record_run(tmp_path / "c", [1], cache="dual", cache_refresh=4)
    assert read_run(refreshed).pace == "64 steps, dual cache refreshed every 4"
    # Folders of earlier versions do not record the family, but carry it in their names.
    settings = json.loads((tmp_path / "0shot_dream_gsm8k" / "settings.json").read_text())
    (tmp_path / "0shot_dream_gsm8k" / "settings.json").write_text(json.dumps({**settings, "family": None}))
    assert read_run(tmp_path / "0shot_dream_gsm8k").family == "dream"


def test_missing_foreign_and_damaged_folders_are_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "settings.json").write_text('{"colour": "blue"}')
    begun = record_run(tmp_path / "begun", [])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="is a file; give the folder"):
        find_runs([begun / "settings.json"])
    with pytest.raises(SystemExit) as exit_info:
        report.main([str(tmp_path / name) for name in ("empty", "foreign", "begun")])
    message = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "empty holds no run" in message and "does not describe a benchmark's run" in message
    assert "no sample in it is finished" in message
    good = record_run(tmp_path / "good", [1])
    (good / "samples.jsonl").write_text((good / "samples.jsonl").read_text() + "nonsense\n")
    with pytest.raises(ValueError, match="line 2 is no finished sample"):
        read_run(good)


class Page(html.parser.HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.sources = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_page(tmp_path, capsys):
    results = tmp_path / "results"
    record_run(results / "alone", [1, 0, 0, 1] * 10)
    for tau, share in ((0.7, 0.3), (0.1, 0.3), (0.1, 0.7)):
        right = [1, 1, 0, share > 0.5] * 10
        record_run(results / "grid" / f"{tau}_{share}", right, coupling="latent", pc_temperature=tau, pc_frac=share)
    record_run(results / "gpqa", [1, 0], task="gpqa", coupling="latent", remasking="random", pc_temperature=0.2)
    record_run(results / "half", [1, 0], steps=32, summary=False)
    (results / "foreign").mkdir()
    (results / "foreign" / "settings.json").write_text("{}")
    runs = [{"name": name, "flags": f"--tag {name}", "folder": name} for name in ("0.7_0.3", "never")]
    (results / "grid" / "grid.json").write_text(json.dumps({"runs": runs}))
    report.main([str(results), "--output_dir", str(tmp_path / "out")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert "b" not in page.tags and "script" not in page.tags and "<b>tiny</b>" in page.text
    assert page.sources and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    for part in ("50.00", "35.2 – 64.8", "paper 32.37", "paper 34.65", "best of 3: 75.00", "partial: 2 so far"):
        assert part in page.text, part
    # Ten problems that only CoDD solves and ten that only the backbone does; then ten more against none.
    assert "p = 1.000" in page.text and "+25.00" in page.text
    assert "64 steps, low_confidence, τ 0.1" in page.text and '"seed": 0' in page.text and "2 × cpu" in page.text
    assert "does not describe a benchmark's run" in page.text and "never was not begun: --tag never" in page.text
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(written["runs"]) == 6 and len(written["comparisons"]) == 3
    assert {made["p_value"] for made in written["comparisons"]} == {1.0, mcnemar_exact(0, 10)}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.md", "gsm8k_accuracy_by_speed.png", "gpqa_accuracy_by_tokens_per_pass.svg"} <= names
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| CoDD | low_confidence |" in markdown and "<b>" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)


def test_runs_under_other_conditions_stand_in_other_tables(tmp_path):
    record_run(tmp_path / "plain", [1, 0, 0, 0])
    record_run(tmp_path / "tuned", [1, 1, 1, 1], adapter="wd1")
    record_run(tmp_path / "shots", [1, 1, 0, 0], num_shot=4)
    runs = ordered(find_runs([tmp_path])[0])
    for tables, header in ((paper_tables(runs), 2), (latency(runs), 1)):
        titles = [block.text for block in tables if isinstance(block, Heading) and block.level == 3]
        assert [("adapter none" in title, "adapter wd1" in title) for title in titles] == [(True, False), (False, True)]
        plain, tuned = (block for block in tables if isinstance(block, Table))
        assert list(plain.header[header:]) == ["GSM8K, 0-shot, 64 steps", "GSM8K, 4-shot, 64 steps"]
        assert list(tuned.header[header:]) == ["GSM8K, 64 steps"]
    plain, tuned = (block for block in paper_tables(runs) if isinstance(block, Table))
    assert [cell.split("\n")[0] for cell in plain.rows[0][2:]] == ["25.00", "50.00"]
    assert tuned.rows[0][2].startswith("100.00") and "best of" not in str([plain.rows, tuned.rows])


def test_tasks_stand_side_by_side_and_seeds_in_one_cell(tmp_path):
    for seed, right in enumerate(([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])):
        record_run(tmp_path / f"gsm8k_{seed}", right, seed=seed)
    record_run(tmp_path / "mbpp", [1, 0], task="mbpp")
    runs = ordered(find_runs([tmp_path])[0])
    (table,) = (block for block in paper_tables(runs) if isinstance(block, Table))
    assert list(table.header[2:]) == ["GSM8K, 64 steps", "MBPP, 64 steps"]
    (row,) = table.rows
    assert row[2].split("\n")[:2] == ["50.00", "25.00 – 75.00, 3 seeds"] and row[3].startswith("50.00\n")
    assert "paper" in row[2] and "best of" not in row[2]
    (table,) = (block for block in latency(runs) if isinstance(block, Table))
    assert "mean of 3 runs" in table.rows[0][1]


def test_circuits_do_not_mix_and_other_samplings_have_no_figure_of_the_papers(tmp_path):
    for circuit, right in (("weak", [0, 0]), ("strong", [1, 1])):
        for tau in (0.7, 0.1):
            settings = {**CODD, "pc_temperature": tau, "pc_frac": 0.3}
            record_run(tmp_path / f"{circuit}_{tau}", right, circuit=circuit, **settings)
    runs = ordered(find_runs([tmp_path])[0])
    tables = {block.text: None for block in ablation(runs) if isinstance(block, Heading) and block.level == 3}
    assert [("weak" in title, "strong" in title) for title in sorted(tables)] == [(False, True), (True, False)]
    cells = [block.rows[0][1:] for block in ablation(runs) if isinstance(block, Table)]
    assert sorted(cell.split("\n")[0] for row in cells for cell in row) == ["0.00", "0.00", "100.00", "100.00"]
    (table,) = (block for block in paper_tables(runs) if isinstance(block, Table))
    assert "best of 4: 100.00" in table.rows[0][2] and "circuit strong" in table.rows[0][2]
    assert "paper" in table.rows[0][2]
    warm = ordered(find_runs([record_run(tmp_path / "warm", [1, 1], temperature=0.8)])[0])
    assert not any("paper" in str(block.rows) for block in paper_tables(warm) if isinstance(block, Table))


def test_one_run_and_nothing_to_compare(tmp_path):
    record_run(tmp_path / "run", [0, 0, 0], task="mbpp", gen_length=64, steps=16, steps_used=0)
    page = write_report([tmp_path / "run"], tmp_path / "out", progress=False)
    text = Page(page.read_text()).text
    assert "1 run of MBPP" in text and "0.00" in text and "McNemar" not in text


def test_blocks_keep_their_text():
    blocks = [Paragraph("a <i> `x<y` **b**"), Table(("h|1", "n"), [("a|b\nc", "1")]), Details("s", "```\n<script>")]
    markdown = to_markdown(blocks)
    assert r"| a\|b<br>c | 1 |" in markdown and "````\n```\n<script>\n````" in markdown
    page = to_html("t<", blocks, None)
    assert "<script>" not in page and "a &lt;i&gt; <code>x&lt;y</code> <strong>b</strong>" in page
    assert "a|b<br><small>c</small>" in page and "<title>t&lt;</title>" in page

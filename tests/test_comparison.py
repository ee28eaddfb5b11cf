"""Groups of runs, compared by one metric."""

import json
import re

import pytest
from support import ROOT, assert_one_line_error


@pytest.fixture
def runs(tmp_path):
    """Two runs of a, with AP 50 and 53, one of b with 40, and one without an evaluation."""
    for name, results, seconds in (
        ("a1", {"bbox": {"AP": 50.0, "AP50": 70.0}}, 60.0),
        ("a2", {"bbox": {"AP": 53.0, "AP50": 71.0}}, 120.0),
        ("b1", {"bbox": {"AP": 40.0, "AP50": None}}, None),
        ("none", {}, 5.0),
    ):
        (tmp_path / name).mkdir()
        content = {"results": results, "wall_seconds": seconds}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    return tmp_path


def compare(run_python, cwd, *args):
    return run_python(ROOT / "tools/compare_runs.py", *args, cwd=cwd)


def test_mean_and_range_of_each_group_are_printed_and_drawn(run_python, runs):
    groups = ("--group", "a <x|y>", "a1", "a2", "--group", "b", "b1")
    result = compare(run_python, runs, *groups, "--picture", "out.svg")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "| runs | number | bbox/AP | lowest | highest | minutes |",
        "|---|---|---|---|---|---|",
        "| a &lt;x\\|y> | 2 | 51.50 | 50.00 | 53.00 | 1.5 |",
        "| b | 1 | 40.00 | 40.00 | 40.00 | – |",
    ]
    picture = (runs / "out.svg").read_text()
    assert picture.startswith("<svg") and "a &lt;x|y&gt;" in picture and "51.5" in picture
    assert len(re.findall("<use ", picture)) > 3  # the dots, beside the ticks


def test_another_metric(run_python, runs):
    result = compare(run_python, runs, "--group", "a", "a1", "a2", "--metric", "bbox/AP50")
    assert "| a | 2 | 70.50 | 70.00 | 71.00 | 1.5 |" in result.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["--group", "a"], "--group 'a' has no folders"),
        (["--group", "a", "a1", "--group", "a", "a2"], "--group 'a' is given twice"),
        (["--group", "a", "missing"], "missing/results.json"),
        (["--group", "a", "none"], "none: results.json has no evaluation"),
        (["--group", "a", "a1", "b1", "--metric", "bbox/AP50"], "b1: results.json has no 'bbox/AP50'"),
        (["--group", "a", "a1", "--metric", "bbox/ap"], "did you mean bbox/AP"),
        (["--group", "a", "a1", "--picture", "a.png"], "must be an SVG image"),
        ([], "--group"),
    ],
)
def test_what_cannot_be_compared_is_refused(run_python, runs, words, message):
    assert_one_line_error(compare(run_python, runs, *words), message)
    assert sorted(path.name for path in runs.iterdir()) == ["a1", "a2", "b1", "none"]

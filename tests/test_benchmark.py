"""The benchmark: both sides run the same thing, and the page says what was measured."""

import pytest

from resnest_d2 import UserError
from resnest_d2.benchmark import Comparison, Result, compare, comparisons
from resnest_d2.benchmark.page import comparison_table, page, profile_table
from resnest_d2.benchmark.pipeline import measure_pipeline
from resnest_d2.benchmark.worker import OPTIONS, minimal_traffic


def measured(**values):
    comparison = Comparison(
        "some row", "backbone inference", "mask_resnest50", (64, 96), 1, "ours", "released"
    )
    result = Result(
        comparison, [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], 100, 200, {"conv": 3.0, "add": 1.0}, {"conv": 4.0}
    )
    return result._replace(**values)


def test_ratios_are_of_neighbouring_repetitions():
    assert measured().ratios == [2.0, 1.0, 0.5]
    assert "**1.00** (0.50 to 2.00)" in comparison_table([measured()])


def test_a_profile_gives_seconds_and_shares_of_all():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in profile_table(measured()).splitlines()
    ]
    assert ["`conv`", "3.00", "75 %", "4.00", "100 %"] in rows
    assert ["`add`", "1.00", "25 %", "0.00", "0 %"] in rows


def test_the_page_leaves_out_what_was_not_measured():
    text = page([measured(our_profile={}, their_profile={})], [], "cpu")
    assert "some row" in text and "Where the time goes" not in text and "Loader" not in text
    assert "| – |" in text and "| – |" not in page([measured()], [], "cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_are_told_apart_and_their_options_are_known(device):
    rows = comparisons(device)
    assert len({row.title for row in rows}) == len(rows)
    for row in rows:
        for side in (row.ours, row.theirs):
            assert set(side.split("+")[1:]) <= set(OPTIONS), side


def test_least_traffic_of_split_attention():
    """Two splits: 5 maps of one split forward, 8 more backward; a copy moves 4."""
    assert minimal_traffic("Split-Attention inference") == 5 / 4
    assert minimal_traffic("Split-Attention training") == 13 / 4


@pytest.mark.parametrize(
    "task, ours, theirs, size",
    [
        ("Split-Attention training", "ours", "released", (8, 9)),
        ("Split-Attention inference", "ours", "copy", (8, 9)),
        ("backbone training", "ours+channels_last+recompute", "released", (64, 64)),
        ("backbone inference", "ours+fold+half", "timm", (64, 64)),
        ("backbone inference", "ours", "matmul", (64, 64)),
    ],
)
def test_both_sides_are_measured(task, ours, theirs, size):
    comparison = Comparison("a row", task, "mask_resnest50", size, 2, ours, theirs, profile=True)
    result = compare(comparison, "cpu", rounds=2)
    assert len(result.ratios) == 2 and all(seconds > 0 for seconds in (*result.ours, *result.theirs))
    assert min(result.our_memory, result.their_memory) > 100  # MB, of a process that has imported PyTorch
    assert result.our_profile and result.their_profile
    assert Result.of(result._asdict()) == result


def test_a_side_that_fails_is_named_with_its_reason():
    comparison = Comparison(
        "a row", "backbone inference", "mask_resnest50", (64, 64), 1, "ours+wings", "timm"
    )
    with pytest.raises(UserError, match=r"ours\+wings: .*there is no \{'wings'\}"):
        compare(comparison, "cpu", rounds=1)


def test_loader_and_training_are_measured(tmp_path):
    pipeline = measure_pipeline("quickstart", tmp_path / "shapes", "cpu", seconds=0.2)
    assert set(pipeline.loaded) == {"0", "1", "2"}
    assert all(images > 0 for images in (*pipeline.loaded.values(), pipeline.trained))

"""The benchmark: both sides run the same thing, and the page says what was measured."""

import importlib.util
import itertools
import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg, Kernel

from resnest_d2 import UserError, benchmark
from resnest_d2.benchmark import Comparison, Result, check_device, compare, comparisons, settings_of
from resnest_d2.benchmark.page import comparison_table, page, page_before, part, profile_table
from resnest_d2.benchmark.pipeline import PIPELINES, Pipeline, measure_pipeline
from resnest_d2.benchmark.store import Store
from resnest_d2.benchmark.worker import (
    OPTIONS,
    build,
    inputs,
    mean_seconds,
    minimal_traffic,
    profiled,
    repeat,
    seconds_by_name,
)

FACTS = {
    **{"date": "2026-01-02", "machine": "an abacus", "torch": "2", "python": "3", "torchvision": "0"},
    **{"released": "1", "timm": "1"},
}


ROW = Comparison("some row", "backbone inference", "mask_resnest50", (64, 96), 1, "ours", "released")


def measured(row=ROW, **values):
    result = Result(row, [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], 100, 200, {"conv": 3.0, "add": 1.0}, {"conv": 4.0})
    return result._replace(**values)


def test_ratios_are_of_neighbouring_repetitions():
    assert measured().ratios == [2.0, 1.0, 0.5]
    assert "**1.00** (0.50 to 2.00)" in comparison_table([ROW], {ROW: measured()})


def test_a_profile_gives_seconds_and_shares_of_all():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in profile_table(measured()).splitlines()
    ]
    assert ["`conv`", "3.00", "75 %", "4.00", "100 %"] in rows
    assert ["`add`", "1.00", "25 %", "0.00", "0 %"] in rows


def test_a_part_leaves_out_what_was_not_measured_and_has_dashes_for_rows():
    other = ROW._replace(title="another row")
    text = part([ROW, other], {ROW: measured(our_profile={}, their_profile={})}, [], "cpu", FACTS)
    assert "an abacus" in text and "Where the time goes" not in text and "Loader" not in text
    cells = {line.split("|")[1].strip(): line.split("|")[4:8] for line in text.splitlines() if "row " in line}
    assert [cell.strip() for cell in cells["another row"]] == ["–"] * 4 and "–" not in cells["some row"][0]


def test_a_part_of_the_page_is_replaced_and_the_other_kept():
    on_cpu = part([ROW], {ROW: measured(commit="c0ffee" * 6)}, [], "cpu", FACTS)
    on_gpu = part([ROW], {ROW: measured()}, [], "cuda", {**FACTS, "machine": "a GPU"})
    first = page("", "cpu", on_cpu)
    assert "commit c0ffeec0, on an abacus" in first and "on a GPU:" not in first
    assert all(row.title in first.split("## On a GPU")[1] for row in comparisons("cuda"))
    both = page(first, "cuda", on_gpu)
    assert "on an abacus" in both and "on a GPU:" in both
    assert page(both, "cpu", on_cpu) == both and both.count("## On a CPU") == both.count("## On a GPU") == 1


def test_measurements_are_kept_row_by_row_and_only_beside_those_of_the_same_machine(tmp_path):
    file = tmp_path / "cpu.json"
    pipeline = Pipeline("quickstart", "192x128", 2, {"0": 1.0}, 2.0)
    store = Store(file, FACTS)
    store.add(measured())
    store.add(pipeline)
    assert Store(file, FACTS).results == {ROW: measured()}
    store = Store(file, {**FACTS, "date": "2026-02-03"})
    store.add(measured(our_memory=300.0))
    again = Store(file, FACTS)
    assert again.results[ROW].our_memory == 300 and again.pipelines == {"quickstart": pipeline}
    with pytest.raises(UserError, match="measured with machine an abacus, and this is a loom"):
        Store(file, {**FACTS, "machine": "a loom"})


def written(**values):
    """A file of measurements as JSON, of one row."""
    return json.dumps(
        {"facts": FACTS, "results": [{**measured()._asdict(), **values}], "pipelines": []}
    ).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff\xfe", b"null", b"3", b"[]", b"{}", b'{"facts": {}}', b"[" * 1000),
        *(b'{"facts": [], "results": [], "pipelines": []}', b'{"facts": {}, "results": 3, "pipelines": []}'),
        *(b'{"facts": {}, "results": [3], "pipelines": []}', b'{"facts": {}, "results": [], "pipelines": [{}]}'),
        *(b'{"facts": {}, "results": [], "pipelines": [{"config": [], "images": "", "batch": 1, "loaded": {}, "trained": 1}]}',),
        *(written(ours=[], theirs=[]), written(ours=[1.0]), written(ours=["1", 2, 3]), written(ours=[0, 1, 2])),
        *(written(theirs=[float("nan")] * 3), written(comparison=["x"] * 11), written(comparison=["x"])),
        *(written(comparison=[*ROW[:3], [64, "x"], *ROW[4:]]), written(comparison=[[], *ROW[1:]])),
        *(written(our_profile=[1]), written(our_profile={}), written(our_profile={"x": 0}), written(other=1)),
        *(written(our_memory="x"), written(commit=3)),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "cpu.json").write_bytes(content)
    with pytest.raises(UserError, match=r"--json .*cpu\.json"):
        Store(tmp_path / "cpu.json", FACTS)
    assert (tmp_path / "cpu.json").read_bytes() == content


def test_a_place_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "notes.md").write_text("# Notes\n")
    for path, reason in ((tmp_path, "folder"), (tmp_path / "fifo", "FIFO"), (Path("/dev/null"), "device")):
        with pytest.raises(UserError, match=reason):
            Store(path, FACTS)
        with pytest.raises(UserError, match=reason):
            page_before(path)
    with pytest.raises(UserError, match=r"notes\.md is not a benchmarks page and would be lost"):
        page_before(tmp_path / "notes.md")
    assert page_before(tmp_path / "none.md") == ""


@pytest.mark.parametrize(
    "device, said",
    [
        ("tpu", "--device tpu: did you mean cpu?"),
        ("cuda:9", "--device cuda:9: did you mean cuda? CUDA_VISIBLE_DEVICES picks one"),
        ("", "--device : there are cpu, cuda"),
        ("cuda", "--device cuda: no CUDA device is visible"),
    ],
)
def test_a_device_that_is_not_there_is_named(device, said, monkeypatch):
    if device == "cuda" and torch.cuda.is_available():
        check_device(device)
        return
    with pytest.raises(UserError, match=re.escape(said)):
        check_device(device)


def test_a_side_that_ends_at_once_is_named_with_its_last_words(tmp_path, monkeypatch):
    """Its request, which no longer fits, included."""
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(benchmark, "_WORKER", worker)
    for code, said in (
        ("raise SystemExit('no\\x07 room')", "ours: no room"),
        ("", "ours: it ended without a message"),
    ):
        worker.write_text(code)
        side = benchmark._Side("ours")
        side._process.wait(30)
        with pytest.raises(UserError, match=said):
            side.run({"config": "x" * 1_000_000})
        side.close()


@pytest.fixture
def tool():
    """tools/benchmark.py."""
    spec = importlib.util.spec_from_file_location("benchmark_tool", ROOT / "tools/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_single_rows_are_measured_anew_when_asked_and_the_page_has_all(tool, tmp_path, monkeypatch):
    """The measuring itself, which takes long, has tests below."""
    file, target = tmp_path / "cpu.json", tmp_path / "page.md"
    rows, done = comparisons("cpu"), []
    store = Store(file, tool.facts_of("cpu"))
    for row in rows[-2:]:
        store.add(measured(row, our_memory=-1.0))
    monkeypatch.setattr(tool, "compare", lambda row, *_: done.append(row) or measured(row))
    words = ["--device", "cpu", "--json", str(file), "--page", str(target)]

    def run(*more):
        done.clear()
        tool.main(tool.parser().parse_args([*words, *more]))
        return done

    assert run("--only", rows[-1].title) == []
    assert target.read_text().count("| -1 / 200") == 2
    # The title of the row before the last is also the beginning of the last one's.
    assert rows[-1].title.startswith(rows[-2].title)
    assert run("--only", rows[-2].title, "--again") == [rows[-2]]
    assert target.read_text().count("| -1 / 200") == target.read_text().count("| 100 / 200") == 1
    assert run("--only", rows[0].title, "--minutes", "0") == []
    assert run("--only", "Split-Attention of res2, forward") == [
        r for r in rows if "res2, forward" in r.title
    ]

    def fail(row, *_):
        done.append(row)
        raise UserError("out of memory")

    monkeypatch.setattr(tool, "compare", fail)
    with pytest.raises(UserError, match="out of memory"):
        run("--only", "timm")
    assert len(run("--only", "as run", "--keep-going")) == 5  # of 7, two of which the file has


@pytest.mark.parametrize(
    "words, said",
    [
        (("--rounds", "0"), "--rounds must be >= 1, got 0"),
        (("--minutes", "nan"), "--minutes must be >= 0, got nan"),
        (("--minutes", "-1"), "--minutes must be >= 0, got -1"),
        (("--minutes", "inf"), "--minutes must be >= 0, got inf"),
        (
            ("--only", "backbone inferenze"),
            "--only: no title contains 'backbone inferenze'; did you mean backbone inference",
        ),
    ],
)
def test_flags_out_of_range_are_named(tool, words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        tool.main(tool.parser().parse_args(["--device", "cpu", *words]))


@pytest.mark.parametrize("flag", ["--images", "--detections", "--repeats"])
@pytest.mark.parametrize("value", ["0", "-1", "1000000000"])
def test_flags_of_the_comparison_of_backends_out_of_range_are_named(flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark_coco_eval.py", flag, value])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/benchmark_coco_eval.py"), run_name="__main__")
    assert re.fullmatch(rf"error: {flag} must be >= 1 and <= \S+, got {value}\n", capsys.readouterr().err)


def test_the_comparison_of_backends_says_how_to_get_the_second(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr(sys, "argv", ["benchmark_coco_eval.py", "--images", "1"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/benchmark_coco_eval.py"), run_name="__main__")
    assert capsys.readouterr().err.endswith(": pip install faster-coco-eval\n")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_rows_are_told_apart_and_their_options_are_known(device):
    rows = comparisons(device)
    assert len({row.title for row in rows}) == len(rows)
    for row in rows:
        for side in (row.ours, row.theirs):
            assert set(side.split("+")[1:]) <= set(OPTIONS), side


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_split_attention_has_rows_for_each_stage_and_memory_format(device):
    rows = [row for row in comparisons(device) if row.task == "Split-Attention training"]
    maps = {(row.channels, row.size, row.memory_format, row.theirs) for row in rows}
    assert len(maps) == len(rows) == 4 * 2 * 2 and all(row.batch == 2 for row in rows)
    width = 1088 if device == "cpu" else 1216
    for channels, stride in ((64, 4), (128, 8), (256, 16), (512, 32)):
        for memory_format in ("contiguous", "channels_last"):
            assert (channels, (800 // stride, width // stride), memory_format, "copy") in maps


def request(**values):
    return {
        **{"task": "Split-Attention training", "size": (8, 9), "batch": 2, "device": "cpu"},
        **{"precision": "fp32", "config": {}, "weights": None, **values},
    }


@pytest.mark.parametrize("channels, memory_format", [(16, "contiguous"), (32, "channels_last")])
def test_maps_have_the_channels_and_the_format_of_the_row(channels, memory_format):
    wanted = request(channels=channels, memory_format=memory_format)
    data = inputs(wanted)
    assert data.shape == (2, 2 * channels, 8, 9)
    assert data.is_contiguous(memory_format=getattr(torch, f"{memory_format}_format", torch.channels_last))
    repeat(build("ours", wanted), data, wanted)
    assert data.grad.shape == data.shape and data.grad.stride() == data.stride()


def test_repetitions_do_not_add_up_the_gradient_of_their_input():
    model, data = build("ours", request()), inputs(request())
    gradients = []
    for _ in range(2):
        repeat(model, data, request())
        gradients.append(data.grad)
    assert gradients[0] is not gradients[1]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_profile_counts_each_moment_once():
    """A GPU's: an operator that starts a kernel, a kernel of no operator, and an annotation over both."""

    def event(name, device_type, microseconds, **values):
        return FunctionEvent(
            1, name, 0, 0, microseconds, device_type=device_type, use_device="cuda", **values
        )

    operator = event("aten::mul", DeviceType.CPU, 7)
    operator.kernels = [Kernel("mul_kernel", 0, 30)]
    events = [
        operator,
        event("mul_kernel", DeviceType.CUDA, 30),
        event("triton_kernel", DeviceType.CUDA, 20),
        event("## a step ##", DeviceType.CUDA, 55, is_user_annotation=True),
    ]
    events = [FunctionEventAvg().add(e) for e in events]
    assert events[0].self_device_time_total == 30  # of its kernel
    assert seconds_by_name(events, "cuda") == {"mul_kernel": 30e-6, "triton_kernel": 20e-6}
    assert seconds_by_name(events, "cpu") == {"aten::mul": 7e-6}


def test_least_traffic_of_split_attention():
    """Two splits: 5 maps of one split forward, 8 more backward; a copy moves 4."""
    assert minimal_traffic("Split-Attention inference") == 5 / 4
    assert minimal_traffic("Split-Attention training") == 13 / 4


@pytest.mark.parametrize(
    "task, ours, theirs",
    [
        ("Split-Attention inference", "ours", "copy"),
        ("Split-Attention training", "ours", "released"),
        ("backbone training", "ours+channels_last+recompute", "released"),
        ("backbone inference", "ours+fold+half", "timm"),
        ("backbone inference", "ours", "matmul"),
    ],
)
@pytest.mark.slow  # each starts two processes; what runs in them is measured below
def test_both_sides_are_measured(task, ours, theirs):
    size = (64, 64) if "backbone" in task else (8, 9)
    comparison = Comparison("a row", task, "mask_resnest50", size, 2, ours, theirs, profile=True)
    result = compare(comparison, "cpu", rounds=2)
    assert len(result.ratios) == 2 and all(seconds > 0 for seconds in (*result.ours, *result.theirs))
    assert min(result.our_memory, result.their_memory) > 100  # MB, of a process that has imported PyTorch
    assert result.our_profile and result.their_profile
    assert Result.of(result._asdict()) == result


@pytest.mark.parametrize(
    "task, side",
    [
        *itertools.product(("Split-Attention training", "Split-Attention inference"), ("ours", "copy")),
        *itertools.product(("backbone inference",), ("ours", "ours+fold+half", "timm", "matmul")),
        ("backbone training", "ours+channels_last+recompute"),
    ],
)
def test_a_side_is_measured_and_its_operators_are(task, side):
    size = (64, 64) if "backbone" in task else (8, 9)
    comparison = Comparison("a row", task, "mask_resnest50", size, 2, side, side)
    wanted = request(task=task, size=size, config=settings_of(comparison))
    model, data = build(side, wanted), inputs(wanted)
    assert mean_seconds(model, data, wanted) > 0 and profiled(model, data, wanted)


def test_options_that_are_none_are_named():
    with pytest.raises(ValueError, match=r"ours\+wings: there is no \{'wings'\}"):
        build("ours+wings", request())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "classification/resnest14_small"])
def test_loader_and_training_are_measured(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PIPELINES, name, (((192, 128),), 8))
    pipeline = measure_pipeline(name, tmp_path / "shapes", "cpu", seconds=0.05)
    assert set(pipeline.loaded) == {"0", "1", "2"}
    assert all(images > 0 for images in (*pipeline.loaded.values(), pipeline.trained))

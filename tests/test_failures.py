"""What a command line says of a failure, wherever it can say it."""

import io
import locale
import os
import subprocess
import sys
import warnings
from argparse import Namespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_roi_heads
from support import ROOT
from torch.utils.data import DataLoader, Dataset

from resnest_d2 import UserError, model_zoo
from resnest_d2.command_line import one_line_errors, prepare_process
from resnest_d2.data import check_datasets
from resnest_d2.engine import run
from resnest_d2.engine.failures import blames_configuration, named_failures


def said(error, capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_whole_message_is_one_line(capsys):
    text = "HTTP Error 302: a loop.\nThe last was:\n\tFound."
    assert said(UserError(text), capsys) == "error: HTTP Error 302: a loop. The last was: Found.\n"
    assert said(UserError("a.yaml: UserError: 3"), capsys) == "error: a.yaml: UserError: 3\n"


def test_a_value_of_megabytes_leaves_both_ends_of_the_message(capsys):
    line = said(UserError("SEED is " + "9" * 10**6 + "; make it smaller"), capsys)
    assert len(line) < 2100 and line.startswith("error: SEED is 99") and line.endswith("9; make it smaller\n")


@pytest.mark.parametrize(
    "settings, build, why",
    [
        (
            ["MODEL.ROI_HEADS.NAME", "Res5ROIHeads"],
            lambda cfg: build_roi_heads(
                cfg, dict.fromkeys(cfg.MODEL.ROI_HEADS.IN_FEATURES, ShapeSpec(8, stride=4))
            ),
            r"AssertionError: assert len\(in_features\) == 1, in MODEL.ROI_HEADS.NAME Res5ROIHeads",
        ),
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 14],
            build_backbone,
            "KeyError: 14, in MODEL.BACKBONE.NAME build_resnet_backbone",
        ),
    ],
)
def test_a_part_of_the_model_that_cannot_be_built_is_named_by_its_key(settings, build, why, tmp_path):
    cfg = model_zoo.get_config("quickstart")
    cfg.merge_from_list([*settings, "OUTPUT_DIR", str(tmp_path)])
    with (
        pytest.raises(UserError, match=rf"^building .* failed \({why}\)"),
        blames_configuration(cfg, "building"),
    ):
        build(cfg)


class Refusing(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("a.jpg: UserError: of two\nlines")


def test_of_a_workers_error_the_line_is_what_it_says(capsys):
    with pytest.raises(SystemExit), one_line_errors():
        next(iter(DataLoader(Refusing(), num_workers=1)))
    assert capsys.readouterr().err == "error: a.jpg: UserError: of two lines\n"


def test_a_rank_left_in_the_environment_silences_nobody(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert said(UserError("x"), capsys) == "error: x\n"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for rank, world in (("a", "2"), ("3", "2"), ("1", "b")):  # none of torchrun's
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        assert said(UserError("x"), capsys) == "error: x\n"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")  # with torchrun, process 0 says it
    assert said(UserError("x"), capsys) == ""


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), OSError(5, "Input/output error", "x.pth")]
)
def test_failures_of_the_system_are_one_line(error):
    with pytest.raises(UserError, match=error.strerror), named_failures(model_zoo.get_config("quickstart")):
        raise error


def test_fifos_for_registered_annotations_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    DatasetCatalog.register("test_fifo", lambda: [])
    MetadataCatalog.get("test_fifo").set(json_file=str(tmp_path / "a.json"), image_root=str(tmp_path))
    with pytest.raises(UserError, match=r"DATASETS.TEST: .*a\.json is a FIFO"):
        check_datasets(["test_fifo"], "DATASETS.TEST")


def in_child(function, stdout, stderr):
    """The status of a process that has these files, or None for closed ones, as its standard streams."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        for number, name, file in ((1, "stdout", stdout), (2, "stderr", stderr)):
            os.close(number)
            if file is not None:
                os.dup2(file, number)
            setattr(sys, name, None if file is None else os.fdopen(number, "w"))
        function()
        status = 0
    except SystemExit as e:
        status = e.code
    finally:
        for stream in (sys.stdout, sys.stderr):  # as Python does at its end
            try:
                stream.flush()
            except OSError:
                status = 120
        os._exit(status)


def speak():
    with one_line_errors():
        for _ in range(3000):  # more than is buffered
            print("x" * 100)
        raise UserError("größe")


def test_streams_that_are_full_closed_or_read_by_nobody_end_nothing(tmp_path):
    reader, unread = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for stdout in (unread, full, None):
        file = os.open(tmp_path / "stderr", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        assert in_child(speak, stdout, file) == 2
        lines = (tmp_path / "stderr").read_text().splitlines()
        assert lines[0] == "error: größe"
        assert lines[1:] == (
            ["stdout: not all could be written (No space left on device)"] * (stdout == full)
        )
    for stderr in (unread, full, None):
        assert in_child(speak, os.open("/dev/null", os.O_WRONLY), stderr) == 2


@pytest.mark.parametrize("buffered", [True, False])  # the latter by python -u
def test_what_no_encoding_has_is_printed_all_the_same(buffered, tmp_path):
    def say():
        raw, sys.__stdout__ = io.FileIO(1, "w", closefd=False), sys.stdout  # which closes the file as it goes
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw) if buffered else raw, "utf-8", write_through=not buffered
        )
        prepare_process()
        print("\ud800 ö")

    file = os.open(tmp_path / "stdout", os.O_RDWR | os.O_CREAT)
    assert in_child(say, file, os.open("/dev/null", os.O_WRONLY)) == 0
    assert (tmp_path / "stdout").read_text("utf-8") == "\\ud800 ö\n"


def test_a_locale_without_unicode_keeps_nobody_from_writing_it(tmp_path):
    def write():
        locale.setlocale(locale.LC_CTYPE, "C")
        prepare_process()
        (tmp_path / "text").write_text("größe")

    null = os.open("/dev/null", os.O_WRONLY)
    assert in_child(write, null, null) == 0
    assert (tmp_path / "text").read_bytes().decode() == "größe"


def test_warnings_of_other_packages_are_no_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with one_line_errors(), pytest.warns(DeprecationWarning):
            warnings.warn("old", DeprecationWarning, stacklevel=1)


@pytest.mark.slow
def test_training_works_with_asserts_off_in_a_c_locale_and_with_warnings_as_errors(tmp_path):
    """A real process, since these are given before Python starts, which compiles all modules for it."""
    from robust import tiny

    data = tiny.make_data(tmp_path)
    (tmp_path / "a.yaml").write_text(f"# größe\n_BASE_: {ROOT}/configs/quickstart.yaml\n", encoding="utf-8")
    words = tiny.command(data, tmp_path / "out", 2)
    words[words.index("--config-file") + 1] = str(tmp_path / "a.yaml")
    environment = {
        **tiny.environment(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
        "PYTHONWARNINGS": "error",
    }  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-O", *words], env=environment, capture_output=True, timeout=200
    )
    assert process.returncode == 0, process.stderr.decode()[-3000:]
    assert b"Traceback" not in process.stdout + process.stderr
    assert "größe" in (tmp_path / "out/log.txt").read_text(encoding="utf-8")
    assert (tmp_path / "out/model_final.pth").exists()


def test_names_that_the_locale_cannot_read_are_refused_where_they_would_be_logged(capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["train_net.py", "OUTPUT_DIR", b"gr\xc3\xb6\xc3\x9fe".decode("ascii", "surrogateescape")]
    )
    with pytest.raises(SystemExit) as ended:
        run(print, Namespace())
    assert ended.value.code == 2
    assert "is not valid text in this locale; set PYTHONUTF8=1" in capsys.readouterr().err

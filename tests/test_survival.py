"""Training that fits the machine, is stopped and goes on, and meets numbers that go wrong.

Shorter versions of what `make robust` runs.
"""

import json
import shutil
import signal

import pytest
import torch
from robust import corpus, kills, soak, tiny
from support import assert_one_line_error

from resnest_d2 import OptionError, UserError, model_zoo
from resnest_d2.data import fit_config
from resnest_d2.engine import Trainer
from resnest_d2.engine.failures import blames_configuration, named_failures
from resnest_d2.engine.fit import fit_to_machine

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def data(few_shapes):
    return tiny.shapes(few_shapes)


def run(run_python, data, output, iterations, *settings, flags=()):
    return run_python(*tiny.command(data, output, iterations, *settings, flags=flags), env=tiny.environment())


def losses(data, output, iterations, *settings, flags=()):
    """Train, writing the loss of each iteration."""
    words = tiny.command(data, output, iterations, *settings, flags=flags)
    words[0] = words[0].replace("tools/train_net.py", "tests/robust/losses.py")
    tiny.finish(words, output.with_suffix(".log"))
    return json.loads((output / "losses.json").read_text())


def config(name="mask_resnest50", **values):
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list([word for key, value in values.items() for word in (key.replace("__", "."), value)])
    return cfg


def test_synchronised_norms_become_plain_ones_in_one_process():
    cfg = config("cascade_mask_resnest50", MODEL__DEVICE="cuda")
    (note,) = fit_to_machine(cfg, 1)
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == cfg.MODEL.ROI_BOX_HEAD.NORM == "BN"
    assert note.startswith("MODEL.") and "BN instead of a synchronised norm, as there is one process" in note
    cfg = config("cascade_mask_resnest50", MODEL__DEVICE="cuda")
    assert fit_to_machine(cfg, 8) == [] and cfg.MODEL.RESNETS.NORM == "SyncBN"


@pytest.mark.parametrize(
    "images, processes, norm, fits",
    [(1, 1, "BN", False), (2, 1, "BN", True), (2, 2, "BN", False), (4, 2, "BN", True), (2, 2, "SyncBN", True),
     (1, 1, "FrozenBN", True), (1, 1, "GN", True), (1, 1, "SyncBN", False)],
)  # fmt: skip
def test_batch_statistics_of_pooled_vectors_need_two_images(images, processes, norm, fits):
    cfg = config(MODEL__RESNETS__NORM=norm, SOLVER__IMS_PER_BATCH=images)
    if fits:
        fit_to_machine(cfg, processes)
        return
    with pytest.raises(UserError, match=r"SOLVER.IMS_PER_BATCH .*needs 2; raise .*FrozenBN .*or GN"):
        fit_to_machine(cfg, processes)


def test_batches_that_do_not_divide_are_named():
    with pytest.raises(
        OptionError, match=r"SOLVER.IMS_PER_BATCH must be a multiple of the number of processes, 3, got 16"
    ):
        fit_to_machine(config(), 3)
    with pytest.raises(OptionError, match=r"must be a multiple of SOLVER.REFERENCE_WORLD_SIZE 5, got 16"):
        fit_to_machine(config(SOLVER__REFERENCE_WORLD_SIZE=5), 3)
    fit_to_machine(config(SOLVER__REFERENCE_WORLD_SIZE=8), 3)  # 16 images on 8 become 6 on 3


def test_frozen_norms_train_with_one_image(data, run_python, tmp_path):
    frozen = ("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.FPN.NORM", "", "SOLVER.IMS_PER_BATCH", 1)
    result = run(run_python, data, tmp_path / "out", 3, *frozen)
    assert result.returncode == 0, result.stderr[-3000:]


def test_one_image_with_batch_statistics_is_refused_before_training(data, run_python, tmp_path):
    result = run(run_python, data, tmp_path / "out", 3, "SOLVER.IMS_PER_BATCH", 1)
    assert_one_line_error(result, "inside Split-Attention, which needs 2")
    assert not (tmp_path / "out/model_final.pth").exists()


def test_a_resumed_run_has_the_losses_and_weights_of_one_that_was_not_stopped(data, tmp_path):
    """With workers, evaluation and PreciseBN between, and a seed that is drawn."""
    settings = ("TEST.EVAL_PERIOD", 8, "DATALOADER.NUM_WORKERS", 1, "SOLVER.AMP.ENABLED", True, "SEED", 7)
    whole = losses(data, tmp_path / "whole", 16, *settings)
    # A copy that stops after 12, as if it were killed then: the schedule is still that of 16.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    for name in ("model_final.pth", "model_0000015.pth", "losses.json", "results.json"):
        (tmp_path / "parts" / name).unlink()
    (tmp_path / "parts/last_checkpoint").write_text("model_0000011.pth")
    later = losses(data, tmp_path / "parts", 16, *settings, flags=("--resume",))
    assert list(later) == ["12", "13", "14", "15"] and later == {k: whole[k] for k in later}
    assert tiny.equal(tiny.weights(tmp_path / "whole"), tiny.weights(tmp_path / "parts"))


def test_a_seed_that_was_drawn_is_drawn_once(data, run_python, tmp_path):
    seeds = []
    for flags in ((), ("--resume",), ()):
        words = tiny.command(data, tmp_path / "out", 2, "SEED", -1, flags=flags)
        assert run_python(*words).returncode == 0
        seeds.append((tmp_path / "out/seed").read_text())
        assert str(json.loads((tmp_path / "out/results.json").read_text())["seed"]) == seeds[-1].strip()
    assert seeds[0] == seeds[1] != seeds[2]


def test_killed_runs_end_with_the_weights_of_one_that_was_not(tmp_path):
    outcome = kills.kill_until(tmp_path, 2, seed=5, iterations=16)  # as it writes, and as it trains
    assert outcome.kills == 2 and outcome.equal == outcome.runs


@pytest.mark.slow
def test_a_signal_writes_a_checkpoint_from_which_training_goes_on_and_has_a_status_of_its_own(tmp_path):
    """Ctrl-C; test_signals.py has the status of each, and test_processes.py a SIGTERM."""
    (stop,) = kills.stop_and_go_on(tmp_path, [signal.SIGINT], seed=1)
    assert stop.status == 130 and stop.equal


@pytest.mark.slow
def test_an_evaluation_by_two_processes_ends_by_a_signal_without_a_traceback(tmp_path):
    stops = kills.stop_evaluations(tmp_path, ["SIGTERM to the launcher", "SIGINT to the group"], seed=1)
    assert [(stop.way, stop.wrong) for stop in stops if stop.wrong] == []


def test_an_evaluation_that_another_process_has_left_loses_no_iteration(data, tmp_path, monkeypatch):
    def evaluate(trainer):
        raise RuntimeError("Connection closed by peer")

    cfg = config("quickstart", OUTPUT_DIR=str(tmp_path), TEST__EVAL_PERIOD=2, MODEL__DEVICE="cpu")
    cfg.merge_from_list([*tiny.SETTINGS, "SOLVER.CHECKPOINT_PERIOD", 1000, "TEST.PRECISE_BN.ENABLED", False])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0])
    _, train, _, train_images, _, val, _, val_images = data
    fit_config(cfg, [(train, train_images)], [(val, val_images)], None)
    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    with pytest.raises(RuntimeError, match="Connection closed"):
        Trainer(cfg).train()
    assert [file.name for file in tmp_path.glob("model_*.pth")] == ["model_0000001.pth"]


@pytest.mark.parametrize("augmented", [False, True])
def test_results_are_written_whatever_fails_after_training(augmented, tmp_path, monkeypatch):
    """And they say that they are not all; a run that goes on writes them anew."""

    def fail(*arguments):
        raise KeyError("no such annotation")

    cfg = config(
        "quickstart", OUTPUT_DIR=str(tmp_path), SEED=1, MODEL__DEVICE="cpu", TEST__AUG__ENABLED=augmented
    )
    cfg.merge_from_list([*tiny.SETTINGS, "SOLVER.MAX_ITER", 2, "TEST.PRECISE_BN.ENABLED", False])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "TEST.AUG.MIN_SIZES", (64,)])
    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "test", lambda *arguments: {"bbox": {"AP": 1.0}} if augmented else fail())
        broken.setattr(Trainer, "test_with_tta", fail)
        with pytest.raises((KeyError, UserError), match="no such annotation"):
            Trainer(cfg).train()
    record = json.loads((tmp_path / "results.json").read_text())
    assert "no such annotation" in record["error"] and record["iterations"] == 2
    assert record["results"] == ({"bbox": {"AP": 1.0}} if augmented else {})
    assert (tmp_path / "model_final.pth").exists()
    monkeypatch.setattr(Trainer, "test", lambda *arguments: {"bbox": {"AP": 2.0}})
    monkeypatch.setattr(Trainer, "test_with_tta", lambda *arguments: {})
    trainer = Trainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    record = json.loads((tmp_path / "results.json").read_text())
    assert "error" not in record and record["results"] == {"bbox": {"AP": 2.0}}


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path):
    """Of a whole training; test_checkpointer.py, test_files.py and test_writers.py have its parts."""
    outcome = soak.full_disk(tmp_path)
    if not outcome:
        pytest.skip("mounting a small file system is not allowed here")
    assert outcome["status"] == 2 and not outcome["traceback"]
    assert len(outcome["said"]) == 1 and "No space left on device" in outcome["said"][0]
    assert outcome["checkpoints"] and outcome["undamaged"] and outcome["equal"]


@pytest.mark.slow
def test_nobody_is_left_after_ctrl_c(tmp_path):
    assert all(outcome.left == 0 for outcome in soak.ctrl_c(tmp_path, 1, seed=2))


@pytest.mark.slow
def test_memory_and_files_stay_flat(tmp_path):
    outcome = soak.soak(tmp_path, 200)
    assert outcome.memory[1] < 1.1 * outcome.memory[0]
    assert outcome.files[1] <= outcome.files[0] + 2


SPIKE = (
    "SOLVER.OPTIMIZER",
    "SGD",
    "SOLVER.BASE_LR",
    1e6,
    "SOLVER.WARMUP_ITERS",
    0,
    "TEST.PRECISE_BN.ENABLED",
    False,
)


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_batch(data, run_python, tmp_path):
    result = run(run_python, data, tmp_path / "out", 30, *SPIKE)
    assert_one_line_error(
        result,
        "not finite at iteration",
        "learning rate 9.",
        "images ",
        "lower SOLVER.BASE_LR",
        "SKIP_NOT_FINITE",
    )
    (file,) = (tmp_path / "out").glob("not_finite_*.pth")
    content = torch.load(file, weights_only=True)
    assert len(content["batch"]) == 2
    assert {"image", "gt_boxes", "gt_classes", "file_name", "image_id"} <= set(content["batch"][0])
    assert str(content["batch"][0]["image_id"]) in result.stderr
    assert not (tmp_path / "out/model_final.pth").exists()


def test_some_iterations_may_be_skipped_and_no_more(data, run_python, tmp_path):
    # Before numbers are infinite, weights are too large for a checkpoint to be written.
    settings = ("SOLVER.SKIP_NOT_FINITE", 3, "SOLVER.CHECKPOINT_PERIOD", 1000)
    result = run(run_python, data, tmp_path / "out", 30, *SPIKE, *settings)
    assert_one_line_error(result, "not finite at iteration")
    assert result.stdout.count("; skipped (") == 3 and "skipped (3 of 3)" in result.stdout
    assert len(list((tmp_path / "out").glob("not_finite_*.pth"))) == 4


def test_the_gradients_norm_is_among_the_metrics(data, run_python, tmp_path):
    assert run(run_python, data, tmp_path / "out", 4).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.json").read_text().splitlines()]
    norms = [line["grad_norm"] for line in lines if "total_loss" in line]
    assert norms and min(norms) > 0


def test_bad_input_is_refused_or_handled(tmp_path):
    """Every 64th case of the corpus; `make robust` has all."""
    outcomes = corpus.run_corpus(tmp_path, 0, every=64)
    assert len(outcomes) >= 30
    assert [o for o in outcomes if not o.good] == []


def test_the_corpus_has_200_cases_of_all_kinds():
    assert sum(map(len, corpus.CASES.values())) >= 200
    assert all(len(cases) >= 40 for cases in corpus.CASES.values())


def test_memory_that_does_not_suffice_is_said_with_the_keys_that_help():
    cfg = config()
    with pytest.raises(UserError, match=r"not enough memory; a smaller SOLVER.IMS_PER_BATCH \(16\)"):
        with blames_configuration(cfg, "the first iteration"), named_failures(cfg):
            torch.empty(10**13)

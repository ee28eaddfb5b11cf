"""Models that are shared: the folder made of a run, its upload, and ``hf://`` weights of others."""

import base64
import json
import os
import pickle
import re
import shlex
import threading

import huggingface_hub
import pytest
import safetensors.torch
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from robust import tiny
from support import ROOT, assert_one_line_error
from test_resolve import Handler, Server, files_in

from resnest_d2 import UserError, hub
from resnest_d2.checkpoint import local_weights
from resnest_d2.engine import load_config

FILES = {"README.md", "classes.json", "config.yaml", "model.safetensors"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished training."""
    folder = tmp_path_factory.mktemp("run")
    tiny.finish(tiny.command(data, folder / "output", 4), folder / "log")
    return folder / "output"


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "model"
    hub.share(run, folder, "CC-BY-4.0", "user/name")
    return folder


def test_a_shared_folder_holds_the_weights_the_classes_and_a_configuration_that_evaluates_them(
    run, shared, data, run_python, tmp_path
):
    assert {file.name for file in shared.iterdir()} == FILES
    weights = safetensors.torch.load_file(shared / "model.safetensors")
    assert tiny.equal(weights, tiny.weights(run))
    truth = json.loads(open(data[data.index("--val-json") + 1]).read())
    assert json.loads((shared / "classes.json").read_text()) == [c["name"] for c in truth["categories"]]
    assert load_config(str(shared / "config.yaml")).MODEL.WEIGHTS == "hf://user/name"
    words = ["--config-file", shared / "config.yaml", "--eval-only", *data[4:], "OUTPUT_DIR", tmp_path]
    words += ["MODEL.WEIGHTS", shared / "model.safetensors"]
    result = run_python(ROOT / "tools/train_net.py", *words, env={"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    found = [json.loads((folder / "results.json").read_text())["results"] for folder in (run, tmp_path)]
    assert found[0] == found[1]


def test_the_card_has_the_figures_of_the_run_and_how_they_came_about(run, shared):
    text, results = (shared / "README.md").read_text(), json.loads((run / "results.json").read_text())
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["library_name"]) == ("cc-by-4.0", "detectron2")
    assert head["pipeline_tag"] == "object-detection"
    rows = dict(re.findall(r"^\| user_val_1 \| bbox \| (\w+) \| (\S+) \|$", text, re.M))
    figures = {k: v for k, v in results["results"]["bbox"].items() if "-" not in k}
    assert rows == {k: "–" if v is None else f"{v:.2f}" for k, v in figures.items()}
    for fact in (f"torch {torch.__version__}", "| hardware | CPU |", "instances_val.json", results["date"]):
        assert fact in text
    assert "SOLVER.MAX_ITER 4" in text and "MODEL.WEIGHTS hf://user/name" in text


def test_no_folder_of_this_machine_is_shared(run, shared):
    for file in FILES - {"model.safetensors"}:
        assert not re.search(rf"{run.parent.parent}|{ROOT}|/tmp|/home", (shared / file).read_text()), file
    command = "/a/b.py --x=/c/d.json '/e f/g h' \"('/h (2)/i.json',)\" ../j/k file:///l/m.pth o/p resnest://q"
    words = ["b.py", "--x=d.json", "g h", "('i.json',)", "k", "m.pth", "o/p", "resnest://q"]
    assert shlex.split(hub.without_folders(command)) == words


def share(run_python, folder, *words):
    return run_python(ROOT / "tools/share.py", folder, "--licence", "apache-2.0", *words)


def test_the_tool_replaces_its_own_files_only_when_asked_and_others_never(run, run_python, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    assert_one_line_error(share(run_python, run, "--output", tmp_path), "holds 'README.md'", "--overwrite")
    assert (tmp_path / "README.md").read_text() == "mine"
    result = share(run_python, run, "--output", tmp_path, "--overwrite")
    assert result.returncode == 0, result.stderr
    assert [line.split("/")[-1] for line in result.stdout.splitlines()] == list(hub.FILES)
    assert "MODEL.WEIGHTS model.safetensors" in (tmp_path / "README.md").read_text()
    (tmp_path / "thesis.tex").write_text("mine")
    before = (tmp_path / "README.md").stat().st_mtime_ns
    result = share(run_python, run, "--output", tmp_path, "--overwrite")
    assert_one_line_error(result, "holds 'thesis.tex', which is not part of a shared model")
    assert (tmp_path / "README.md").stat().st_mtime_ns == before


def copied(run, folder, **changes):
    """The run with other contents of results.json and model_final.pth; None leaves out a file."""
    folder.mkdir()
    for name in ("config.yaml", "results.json", "model_final.pth"):
        if changes.get(name, True) is not None:
            (folder / name).write_bytes((run / name).read_bytes())
    if "results" in changes:
        results = {**json.loads((run / "results.json").read_text()), **changes["results"]}
        (folder / "results.json").write_text(json.dumps(results))
    if "checkpoint" in changes:
        (folder / "model_final.pth").write_bytes(changes["checkpoint"])
    return folder


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config.yaml": None}, "has no config.yaml; name another, or finish it with --resume"),
        ({"results.json": None}, "is not the OUTPUT_DIR of a finished training: it has no results.json"),
        ({"model_final.pth": None}, "has no model_final.pth"),
        ({"results": {"results": {}}}, "results.json has no figures"),
        ({"results": {"error": "ValueError: x"}}, "results.json records a failure"),
        ({"results": {"iterations": 8}}, "was written after 8 iterations, model_final.pth after 4"),
        ({"checkpoint": b""}, "model_final.pth is empty"),
        ({"checkpoint": pickle.dumps(print)}, "would run code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_finished_run_is_refused(run, changes, message, tmp_path):
    folder = copied(run, tmp_path / "run", **changes)
    with pytest.raises(UserError, match=re.escape(message)) as e:
        hub.share(folder, tmp_path / "new", "mit")
    assert "\n" not in str(e.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--licence", "a licence\nof mine"], "must be an abbreviation that the hub knows"),
        (["--push", "name"], "--push must name a model on the hub as USER/NAME, got 'name'"),
        (["--push", "user/../name"], "--push must name a model"),
        (["--output", "/dev/null"], "cannot write"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_written(run, words, message, run_python, tmp_path):
    output = () if "--output" in words else ("--output", tmp_path / "new")
    assert_one_line_error(share(run_python, run, *output, *words), message)
    assert not (tmp_path / "new").exists()


class Hub(Handler):
    """The hub's answers to an upload, which it takes in one commit."""

    def do_POST(self):
        server, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        answer = {"url": f"{server.url}user/name"}
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            for file in (line["value"] for line in lines if line["key"] == "file"):
                server.files[file["path"]] = base64.b64decode(file["content"])
            answer = {"commitUrl": f"{server.url}user/name/commit/1", "commitOid": "1" * 40, "success": True}
        server.requests.append(self.path)
        content = json.dumps(answer).encode()
        self.send_response(int(server.behave) if server.behave.isdigit() else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The hub, with an empty cache, and nothing in that of huggingface_hub."""
    with Server() as server:
        server.RequestHandlerClass = Hub
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        yield server
        server.shutdown()


def test_the_whole_folder_is_uploaded(shared, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    assert hub.push(shared, "user/name") == f"{server.url}user/name/commit/1"
    assert server.files == {file.name: file.read_bytes() for file in shared.iterdir()}
    server.behave = "403"
    with pytest.raises(
        UserError, match=r"^--push user/name: the hub did not take it .*; log in with [^\n]*$"
    ):
        hub.push(shared, "user/name")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def link(revision="main"):
    return f"user/name/resolve/{revision}/model.safetensors"


@pytest.mark.parametrize("revision", ["", "@v1.0", "@refs/pr/1"])
def test_weights_on_the_hub_load_with_detectron2s_stock_checkpointer(revision, network, server, tmp_path):
    name = link(revision[1:].replace("/", "%2F") or "main")
    server.files[name] = safetensors.torch.save(network.state_dict())
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for _ in range(2):
        DetectionCheckpointer(other).load(f"hf://user/name{revision}")
    assert tiny.equal(network.state_dict(), other.state_dict())
    assert server.requests == [name]  # the second time it is found
    assert local_weights(f"hf://user/name{revision}").is_relative_to(tmp_path / "cache")


def test_what_huggingface_hub_has_fetched_comes_first(network, server, tmp_path):
    commit = "0123456789" * 4
    folder = tmp_path / "hf/models--user--name"
    for part in ("refs", f"snapshots/{commit}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs/main").write_text(commit)
    safetensors.torch.save_file(network.state_dict(), folder / f"snapshots/{commit}/model.safetensors")
    for revision in ("", "@main", f"@{commit}"):
        file = local_weights(f"hf://user/name{revision}")
        assert tiny.equal(torch.load(file, weights_only=True)["model"], network.state_dict())
    assert server.requests == []


def test_weights_are_fetched_without_huggingface_hub(network, server, monkeypatch, tmp_path):
    monkeypatch.setitem(os.sys.modules, "huggingface_hub", None)
    server.files[link()] = safetensors.torch.save(network.state_dict())
    assert PathManager.isfile("hf://user/name") and server.requests == [link()]
    with pytest.raises(UserError, match=r"^--push needs huggingface_hub, which is not installed: "):
        hub.push(tmp_path, "user/name")


@pytest.mark.parametrize(
    "weights, message",
    [
        ("hf://user/name@v2", "cannot get hf://user/name@v2 (HUB/user/name/resolve/v2/model.safetensors: HTTP Error 404"),
        ("hf://user/other", "correct the name or the revision, fetch a private model with `hf download user/other`"),
        ("hf://name", "must name a model on the hub as USER/NAME, got 'name'"),
        ("hf://user/name/model.safetensors", "must name a model on the hub"),
        ("hf://user/name@", "must name a branch, tag or commit after the @"),
        ("hf://user/name@a..b", "must name a branch, tag or commit"),
        ("hf://user/na me", "must name a model on the hub"),
    ],
)  # fmt: skip
def test_a_name_or_revision_that_is_not_there_is_said_in_one_line(
    weights, message, network, server, tmp_path
):
    server.files[link()] = safetensors.torch.save(network.state_dict())
    with pytest.raises(UserError, match=re.escape(message.replace("HUB/", server.url))) as e:
        local_weights(weights)
    assert "\n" not in str(e.value) and str(e.value).startswith("MODEL.WEIGHTS")
    assert files_in(tmp_path / "cache") == []


@pytest.mark.parametrize(
    "content, reason",
    [
        (pickle.dumps({"weight": print}), "would run code"),
        (b"<html>", "is a web page"),
        (b"", "is empty"),
    ],
    ids=["pickle", "page", "nothing"],
)
def test_what_the_hub_sends_is_read_as_safely_as_all_files(content, reason, server, tmp_path):
    server.files[link()] = content
    with pytest.raises(UserError, match=rf"cannot get hf://user/name .*what was sent .*{reason}"):
        local_weights("hf://user/name")
    assert files_in(tmp_path / "cache") == []


def test_evaluation_starts_from_a_shared_model(run, shared, data, server, run_python, tmp_path):
    server.files[link()] = (shared / "model.safetensors").read_bytes()
    words = [
        "--config-file",
        shared / "config.yaml",
        "--eval-only",
        *data[4:],
        "OUTPUT_DIR",
        tmp_path / "out",
    ]
    result = run_python(ROOT / "tools/train_net.py", *words, env={"HF_HUB_CACHE": tmp_path / "hf"})
    assert result.returncode == 0, result.stderr[-3000:]
    assert server.requests == [link()] and result.stdout.count("hf://user/name was fetched on") == 1

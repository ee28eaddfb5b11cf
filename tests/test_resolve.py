"""``resnest://NAME``: where weights are looked for, and every way a download can go wrong."""

import gzip
import hashlib
import http.server
import io
import math
import os
import resource
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import forks
import pytest
import safetensors.torch
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import file_lock
from support import assert_one_line_error

from resnest_d2 import UserError, model_zoo
from resnest_d2.checkpoint import Checkpointer, LinkHandler, ResNeStHandler, convert, local_weights, resolve
from resnest_d2.engine import load_config
from resnest_d2.published.backbones import BACKBONES, PretrainedWeights
from resnest_d2.published.detectors import DETECTORS


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("resnest14d").state_dict()


@pytest.fixture(scope="module")
def file(state):
    """Content of a file as the authors publish it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files`` from this machine; ``behave`` decides how."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests, self.behave = {}, [], "well"
        self.instead = {}  # of a file: what is sent in its place

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.lstrip("/")
        server.requests.append(name)
        if server.behave in ("403", "404", "500") or name not in server.files:
            return self.send_error(int(server.behave) if server.behave.isdigit() else 404)
        content, sent = server.files[name], server.instead.get(name, {})
        content = sent.get("content", lambda content: content)(content)
        self.send_response(sent.get("status", 200))
        if sent.get("length", True):
            self.send_header("Content-Length", str(len(content)))
        for header, value in sent.get("headers", {}).items():
            self.send_header(header, value)
        self.end_headers()
        if server.behave == "dropped":  # the connection ends half-way
            content = content[: len(content) // 2]
        if server.behave == "dripping":
            with suppress(OSError):  # until the other side has enough
                for byte in content[:100]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)
            return
        step = len(content) // (20 if server.behave == "slow" else 1) or 1
        with suppress(OSError):
            for start in range(0, len(content), step):
                self.wfile.write(content[start : start + step])
                if server.behave == "slow":
                    time.sleep(0.1)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(file, monkeypatch):
    """Knows one weight, resnest_test, as the authors would publish it, and timm on the hub."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        official = f"resnest_test-{hashlib.sha256(file).hexdigest()[:8]}.pth"
        server.files[official] = file
        monkeypatch.setitem(BACKBONES, "resnest_test", PretrainedWeights(official, "timm/test"))
        monkeypatch.delenv("RESNEST_D2_WEIGHTS", raising=False)
        yield server
        server.shutdown()


@pytest.fixture
def handler(server, tmp_path):
    return ResNeStHandler(tmp_path / "cache", server.url, server.url + "{model}/model.safetensors")


def check(path, state):
    """The file is one that detectron2's stock checkpointer loads, with every value of the source."""
    cfg = model_zoo.get_config("quickstart")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(path))
    loaded = model.backbone.bottom_up.state_dict()
    expected = convert(state).state
    assert all(torch.equal(value, expected[key]) for key, value in loaded.items())


def leftovers(handler):
    """Files in the cache, but for locks."""
    return [p.name for p in handler.cache.glob("**/*") if p.is_file() and p.suffix != ".lock"]


def test_official_file_is_fetched_verified_converted_and_cached(handler, server, state):
    path = handler.resolve("resnest_test")
    check(path, state)
    assert handler.resolve("resnest_test") == path
    assert len(server.requests) == 1  # the second time it is found
    modified = path.stat().st_mtime_ns
    handler.resolve("resnest_test")
    assert path.stat().st_mtime_ns == modified  # and converted once


@pytest.mark.parametrize("behave", ["404", "403", "500", "dropped"])
def test_failed_download_is_never_taken_for_a_weight(handler, server, behave, file, state):
    server.behave = behave
    reason = f"connection ended after {len(file) // 2} of" if behave == "dropped" else f"HTTP Error {behave}"
    with pytest.raises(UserError, match=f"resnest_test is not on this machine. Put resnest_test-.*{reason}"):
        handler.resolve("resnest_test")
    assert leftovers(handler) == []
    server.behave = "well"
    check(handler.resolve("resnest_test"), state)


def test_wrong_hash_is_refused(handler, server):
    name = BACKBONES["resnest_test"].official
    server.files[name] = server.files[name][:-1] + b"x"
    with pytest.raises(UserError, match=r"its SHA-256 starts with \w{8} and SHA-1 starts with \w{8}, not"):
        handler.resolve("resnest_test")
    assert leftovers(handler) == []


def test_hub_is_next_when_the_release_assets_fail(handler, server, state):
    server.files = {"timm/test/model.safetensors": safetensors.torch.save(state)}
    check(handler.resolve("resnest_test"), state)
    assert server.requests == [BACKBONES["resnest_test"].official, "timm/test/model.safetensors"]


def test_a_server_that_drips_is_left_for_the_next(handler, server, monkeypatch):
    monkeypatch.setattr(resolve, "TIMEOUT", 0.3)
    server.behave, begun = "dripping", time.monotonic()
    with pytest.raises(UserError, match=rf"Tried {server.url}\S*: less than 1000 bytes per second; .*{HUB}"):
        handler.resolve("resnest_test")
    assert time.monotonic() - begun < 4 and leftovers(handler) == []


def files_in(folder):
    return [p for p in folder.glob("**/*") if p.is_file() and p.suffix != ".lock"]


@pytest.fixture
def cache(server, tmp_path, monkeypatch):
    """Where links are kept; the server knows good.pth as well."""
    server.files["good.pth"] = next(iter(server.files.values()))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_link_is_fetched_or_said_in_one_line(server, file, cache, monkeypatch):
    monkeypatch.setattr(resolve, "TIMEOUT", 0.3)
    link = server.url + "good.pth"
    server.behave = "dripping"
    with pytest.raises(UserError, match=rf"^MODEL.WEIGHTS: cannot get {link} \(.*less than 1000"):
        local_weights(link)
    assert files_in(cache) == []
    server.behave = "well"
    path = local_weights(f"{link}?matching_heuristics=True")
    assert path.read_bytes() == file and server.requests == ["good.pth"] * 2
    assert local_weights(link.replace("http", "HTTP")) == path and len(server.requests) == 2
    for link in ("http://", server.url, server.url + "x" * 300):
        with pytest.raises(UserError, match=r"^MODEL.WEIGHTS: cannot get http"):
            local_weights(link)


def test_links_to_files_of_one_name_on_two_hosts_are_two_files(server, cache):
    with Server() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        for host, value in ((server, 1.0), (other, 2.0)):
            buffer = io.BytesIO()
            torch.save({"model": {"weight": torch.full((1, 1), value)}}, buffer)
            host.files["model_final.pth"] = buffer.getvalue()
        for host, value in ((server, 1.0), (other, 2.0), (server, 1.0)):
            model = torch.nn.Linear(1, 1, bias=False)
            Checkpointer(model).load(host.url + "model_final.pth?matching_heuristics=True")
            assert model.weight.item() == value
        assert server.requests == other.requests == ["model_final.pth"]
        other.shutdown()


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:1", "ftp://127.0.0.1:1", "detectron2:/"])
def test_a_link_cannot_lead_out_of_the_cache(scheme, cache, tmp_path):
    link, config = f"{scheme}/x/../../../good.pth", model_zoo.get_config_file("quickstart")
    calls = [
        lambda: local_weights(link),
        lambda: load_config(config, ["MODEL.WEIGHTS", link]),
        lambda: load_config(config, ["DATASETS.PROPOSAL_FILES_TRAIN", f"('{link}',)"]),
    ]
    for call in calls:
        with pytest.raises(UserError, match=r"\.\.', which leads out of the cache"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>Please log in</html>", b"", b"PK\3\4 cut"],
    ids=["page", "empty", "cut"],
)
def test_what_a_link_sends_that_is_no_weight_is_not_kept(content, server, cache, file):
    server.files["good.pth"] = content
    with pytest.raises(
        UserError, match=r"^MODEL.WEIGHTS: cannot get .*good.pth \(TransferError: what was sent is"
    ):
        local_weights(server.url + "good.pth")
    assert files_in(cache) == []
    server.files["good.pth"] = file
    assert local_weights(server.url + "good.pth").read_bytes() == file


def test_links_that_cannot_be_fetched_as_they_are_are_refused_before(server, cache):
    with pytest.raises(UserError, match=r"good.pth\?v=1 \(.*the only query is matching_heuristics=True"):
        local_weights(server.url + "good.pth?v=1")
    with pytest.raises(UserError, match="user's name") as e:
        local_weights(server.url.replace("//", "//me:s3cret@") + "good.pth")
    assert "s3cret" not in str(e.value) and server.requests == []


def test_a_server_that_never_ends_fills_no_disk(server, cache, monkeypatch):
    monkeypatch.setattr(resolve, "_MOST_BYTES", 1000)
    server.instead["good.pth"] = {"length": False}
    with pytest.raises(UserError, match="more than 1000 bytes, which no weights have"):
        local_weights(server.url + "good.pth")
    assert files_in(cache) == []


@pytest.mark.parametrize("declared", [True, False])
def test_what_finds_no_room_is_not_written(declared, server, cache, monkeypatch):
    monkeypatch.setattr(resolve, "_MOST_BYTES", math.inf)
    server.instead["good.pth"] = {"length": False, "headers": {"Content-Length": 1 << 60} if declared else {}}
    if not declared:
        used = shutil.disk_usage("/")
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: used._replace(free=1000))
    needed = str(1 << 60) if declared else r"\d+"
    folder = cache / f"links/127.0.0.1:{server.server_port}"
    with pytest.raises(
        UserError, match=rf"{needed} bytes are needed, and \d+ are free in {folder}; make room"
    ):
        local_weights(server.url + "good.pth")
    assert files_in(cache) == []


def test_the_hub_may_be_a_mirror(server, state, tmp_path, monkeypatch):
    server.files = {"timm/test/resolve/main/model.safetensors": safetensors.torch.save(state)}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    check(ResNeStHandler(tmp_path, server.url).resolve("resnest_test"), state)


def test_a_folder_that_is_none_is_named(handler, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path / "none"))
    for _ in range(2):
        handler.resolve("resnest_test")
    assert caplog.text.count(f"RESNEST_D2_WEIGHTS names {tmp_path}/none, which is not a folder") == 1


def test_no_network_says_which_file_to_put_where(handler, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as e:
        handler.resolve("resnest_test")
    assert "\n" not in str(e.value)
    for text in (BACKBONES["resnest_test"].official, server.url, str(handler.cache), "RESNEST_D2_WEIGHTS"):
        assert text in str(e.value)


@pytest.mark.parametrize("name", ["official", "resnest_test.pth", "resnest_test.safetensors"])
def test_folder_of_the_user_comes_first(name, handler, server, file, state, tmp_path, monkeypatch):
    name = BACKBONES["resnest_test"].official if name == "official" else name
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_bytes(safetensors.torch.save(state) if name.endswith("rs") else file)
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(folder))
    assert handler.find("resnest_test") == folder / name
    check(handler.resolve("resnest_test"), state)
    assert server.requests == []


def test_changed_file_in_the_folder_is_converted_anew(handler, state, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    torch.save(state, tmp_path / "resnest_test.pth")
    handler.resolve("resnest_test")
    other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    torch.save(other, tmp_path / "resnest_test.pth")
    check(handler.resolve("resnest_test"), other)


def test_damaged_file_in_the_folder_is_refused(handler, file, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    path = tmp_path / BACKBONES["resnest_test"].official
    path.write_bytes(file[:-100])
    with pytest.raises(UserError, match=f"{path} is damaged: its SHA-256"):
        handler.resolve("resnest_test")


HUB = "timm/test/model.safetensors"
PAGE = b"<!DOCTYPE html><html>Sign in</html>"
WRONG = {
    "a web page": {"content": lambda content: PAGE},
    "compressed": {"content": gzip.compress, "headers": {"Content-Encoding": "gzip"}},
    "nothing": {"content": lambda content: b""},
    "a part": {"status": 206, "content": lambda content: content[:1000]},
    "all as a part": {"status": 206},
    "cut, of no known length": {"content": lambda content: content[:-1000], "length": False},
    "something else": {"content": lambda content: safetensors.torch.save({"weight": torch.zeros(3)})},
    "a deeper network": {
        "content": lambda content: safetensors.torch.save(timm.create_model("resnest26d").state_dict())
    },
    "NaN": {
        "content": lambda content: safetensors.torch.save(
            {
                k: v * torch.nan if v.is_floating_point() else v
                for k, v in safetensors.torch.load(content).items()
            }
        )
    },
}


@pytest.fixture
def unhashed(server, state, monkeypatch):
    """A backbone of a depth in its name, on the hub and nowhere else."""
    monkeypatch.setitem(BACKBONES, "resnest14", PretrainedWeights(hub="timm/test"))
    server.files = {HUB: safetensors.torch.save(state)}
    return "resnest14"


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_never_enters_the_cache(wrong, handler, server, unhashed, state):
    server.instead[HUB] = WRONG[wrong]
    with pytest.raises(UserError) as e:
        handler.resolve(unhashed)
    assert "\n" not in str(e.value) and server.url + HUB in str(e.value)
    assert leftovers(handler) == []
    server.instead.clear()
    check(handler.resolve(unhashed), state)


def test_the_next_source_is_asked_after_what_is_no_weight(handler, server, state, monkeypatch):
    monkeypatch.setitem(BACKBONES, "resnest14", PretrainedWeights("resnest14.pth", "timm/test"))
    server.files = {"resnest14.pth": PAGE, HUB: safetensors.torch.save(state)}
    check(handler.resolve("resnest14"), state)
    assert server.requests == ["resnest14.pth", HUB]


@pytest.mark.parametrize("content", [PAGE, b"", b"PK", safetensors.torch.save({"weight": torch.zeros(3)})])
def test_a_file_of_the_cache_that_is_no_weight_is_fetched_again(content, handler, server, unhashed, state):
    handler.cache.mkdir()
    (handler.cache / "resnest14.safetensors").write_bytes(content)
    check(handler.resolve(unhashed), state)
    assert (handler.cache / "resnest14.safetensors").read_bytes() == server.files[HUB]


def test_a_damaged_copy_in_the_cache_is_made_again(handler, server, state):
    path = handler.resolve("resnest_test")
    path.write_bytes(path.read_bytes()[:-1000])
    check(handler.resolve("resnest_test"), state)
    assert len(server.requests) == 1


@pytest.mark.parametrize("content", [PAGE, b"", safetensors.torch.save({"weight": torch.zeros(3)})])
def test_the_users_own_file_is_named_and_stays(content, handler, server, unhashed, tmp_path, monkeypatch):
    own = tmp_path / "resnest14.safetensors"
    own.write_bytes(content)
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=str(own)):
        handler.resolve(unhashed)
    assert own.read_bytes() == content and server.requests == []


def test_a_name_stands_for_no_other_network(handler, state, tmp_path, monkeypatch):
    torch.save(state, tmp_path / "resnest26.pth")
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"resnest26.pth is not resnest26, .*depth 26.* it is of depth 14"):
        handler.resolve("resnest26")


def test_a_file_is_read_once(handler, server):
    path = handler.resolve("resnest_test")
    source = handler.cache / BACKBONES["resnest_test"].official
    stat = source.stat()
    source.write_bytes(bytes(stat.st_size))  # what a second look would find
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert handler.resolve("resnest_test") == path


def test_a_full_disk_costs_no_file_of_the_cache(handler, server):
    """A cache that cannot be written must not be taken for a damaged file."""
    source = handler.cache / BACKBONES["resnest_test"].official
    handler.resolve("resnest_test").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(UserError, match="cannot write"):
            handler.resolve("resnest_test")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert source.exists() and len(server.requests) == 1


def test_unknown_name_lists_the_known(handler):
    with pytest.raises(UserError, match=r"there is no resnest://vgg; there are resnest14, resnest26.*269"):
        handler.resolve("vgg")


@pytest.mark.parametrize("name", ["RESNEST50", "resnest50.pth", "resnest50/", "resnest5"])
def test_a_name_that_is_nearly_one_is_hinted_at(name, handler):
    with pytest.raises(UserError, match=f"there is no resnest://{name}; did you mean resnest50 "):
        handler.resolve(name)


@pytest.mark.parametrize("scheme", ["file", "s3", "hdfs"])
def test_a_link_of_a_scheme_that_nothing_reads_is_named(scheme):
    with pytest.raises(
        UserError, match=f"nothing here reads {scheme}://; fetch it elsewhere and name the local"
    ):
        local_weights(f"{scheme}:///b/x.pth")


HOST = "https://s3.us-west-1.wasabisys.com/resnest/detectron/"
LINK = HOST + "resnest50_detectron-255b5649.pth"


@pytest.fixture
def links(handler):
    return LinkHandler(handler)


def test_every_released_file_is_known_by_its_link(facts):
    weights = facts("weights")
    released = [*weights["detectron2_legacy"]["files"], *(row.released for row in DETECTORS.values())]
    for file in released:
        assert PathManager.isfile(HOST + file) and PathManager.exists(HOST.replace("https", "http") + file)
    for backbone in weights["official"]["files"].values():
        assert PathManager.isfile(HOST.replace("detectron", "torch") + backbone["file"])
    assert not PathManager.isfile(HOST + "resnest51.pth")


def test_link_takes_the_file_of_its_name_first(links, file, state, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    other = {k: v + 1 if v.is_floating_point() else v for k, v in state.items()}
    torch.save(other, buffer)
    linked = f"resnest_test_detectron-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    record = BACKBONES["resnest_test"]
    monkeypatch.setitem(BACKBONES, "resnest_test", record._replace(others=(linked,)))
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    (tmp_path / record.official).write_bytes(file)
    check(links.weights.resolve("resnest_test"), state)
    check(links._get_local_path(HOST + linked), state)  # no such file yet: the same weights
    (tmp_path / linked).write_bytes(buffer.getvalue())
    check(links._get_local_path(HOST + linked + "?matching_heuristics=True"), other)
    check(links.weights.resolve("resnest_test"), state)


def test_link_is_fetched_from_where_the_weights_are_now(links, server, state):
    check(links._get_local_path(HOST + "resnest_test.pth"), state)
    assert server.requests == [BACKBONES["resnest_test"].official]


def test_link_whose_file_detectron2_has_kept_since_is_read_from_there(
    links, server, state, tmp_path, monkeypatch
):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    kept = tmp_path / "resnest" / "detectron" / "resnest_test.pth"
    kept.parent.mkdir(parents=True)
    torch.save(state, kept)
    check(links._get_local_path(HOST + kept.name), state)
    assert server.requests == []


def test_link_to_a_trained_detector_is_its_file_or_one_line(links, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNEST_D2_WEIGHTS", str(tmp_path))
    released = DETECTORS["faster_resnest50_dcn"].released  # has no hash, which a file made here had not
    with pytest.raises(UserError) as e:
        links._get_local_path(HOST + released)
    text = f"MODEL.WEIGHTS: {HOST + released}: its host is gone, and resnest://faster_resnest50_dcn is not on"
    assert str(e.value).startswith(text) and "\n" not in str(e.value)
    assert f"Put {released} which is no longer served anywhere, into {links.weights.cache}" in str(e.value)
    (tmp_path / released).write_bytes(b"x")
    assert links._get_local_path(HOST + released) == str(tmp_path / released)


def test_link_to_an_unknown_file_is_refused_in_one_line_with_the_known(links):
    with pytest.raises(UserError) as e:
        links._get_local_path(HOST + "resnest51-01234567.pth")
    assert "\n" not in str(e.value)
    for text in (
        "no weights named resnest51-01234567.pth",
        "name a file, or resnest://NAME",
        *BACKBONES,
        *DETECTORS,
    ):
        assert text in str(e.value)


FETCH = """
import sys
from pathlib import Path
from resnest_d2.checkpoint import resolve
print(resolve.download(sys.argv[1], Path(sys.argv[2])))
"""


def fetch(server, target, before=""):
    url = server.url + BACKBONES["resnest_test"].official
    said = tempfile.mkdtemp(dir=target.parent.parent)
    words = ["-c", before + FETCH, url, target]
    return forks.start(words, Path(said, "out"), Path(said, "err"), cwd=target.parent)


def test_two_processes_at_once_fetch_it_once(server, file, tmp_path):
    server.behave = "slow"
    target = tmp_path / BACKBONES["resnest_test"].official
    both = [fetch(server, target) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.strip() == str(target)
    assert len(server.requests) == 1 and target.read_bytes() == file


def test_a_wait_for_another_process_is_said(server, file, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(resolve, "_PATIENCE", 0.3)
    target = tmp_path / BACKBONES["resnest_test"].official
    other = file_lock(str(target))  # by flock, so another handle suffices
    other.acquire()
    threading.Timer(1, other.release).start()
    assert resolve.download(server.url + target.name, target).read_bytes() == file
    assert f"Waiting for another process, which holds {target}.lock" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_lock_that_is_no_file_is_named_and_not_waited_for(make, server, tmp_path):
    target = tmp_path / BACKBONES["resnest_test"].official
    make(f"{target}.lock")
    with pytest.raises(UserError, match=rf"^cannot write {target}\.lock: it is a "):
        resolve.download(server.url + target.name, target)


def test_killed_download_leaves_no_weight_and_the_next_one_succeeds(server, file, tmp_path):
    server.behave = "slow"
    target = tmp_path / BACKBONES["resnest_test"].official
    process = fetch(server, target)
    while not server.requests:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    assert not target.exists()
    server.behave = "well"
    assert resolve.download(server.url + target.name, target).read_bytes() == file
    assert {p.name for p in tmp_path.iterdir()} == {target.name, f"{target.name}.lock"}


def test_full_disk_leaves_nothing_behind(server, tmp_path):
    """A limit on the size of files stands for the disk: the write fails in the same place."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
    target = tmp_path / BACKBONES["resnest_test"].official
    _, err = fetch(server, target, limit).communicate(timeout=120)
    assert "(File too large); make room" in err.strip().splitlines()[-1]
    assert [p for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_downloads_show_progress(server, tmp_path):
    target = tmp_path / BACKBONES["resnest_test"].official
    _, err = fetch(server, target).communicate(timeout=120)
    assert target.name in err and "100%" in err


def test_stock_checkpointer_in_a_strangers_project_loads_it_by_name_and_by_released_link(state, tmp_path):
    torch.save(state, tmp_path / "resnest14.pth")
    deeper = timm.create_model("resnest50d").state_dict()
    torch.save(deeper, tmp_path / "resnest50.pth")
    code = f"""
import torch, resnest_d2
from detectron2.checkpoint import DetectionCheckpointer
for depth, weights in ((14, "resnest://resnest14"), (50, "{LINK}"), (50, "{LINK}")):
    net = torch.nn.Module()
    net.encoder = resnest_d2.ResNeSt(depth)
    DetectionCheckpointer(net).load(weights)
    print(net.encoder.res5[0].conv3.weight.sum().item())
"""
    env = {**os.environ, "RESNEST_D2_WEIGHTS": str(tmp_path), "FVCORE_CACHE": str(tmp_path / "cache")}
    result = forks.run(["-c", code], environment=env, cwd=tmp_path, timeout=100)
    assert result.returncode == 0, result.stderr
    first, second = (weights["layer4.0.conv3.weight"].sum().item() for weights in (state, deeper))
    sums = [float(line) for line in result.stdout.splitlines()[-3:]]
    assert sums == pytest.approx([first, second, second], rel=1e-4)
    said = [line for line in result.stderr.splitlines() if LINK in line]
    assert said == [f"{LINK}: its host is gone; resnest://resnest50 replaces it, {tmp_path}/resnest50.pth"]


def quickstart_on(tmp_path, *overrides):
    tiny = (
        *("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "MODEL.FPN.OUT_CHANNELS", 32),
        *("TEST.PRECISE_BN.ENABLED", False, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", tmp_path / "output"),
    )
    return ("tools/train_net.py", "--config-file", "configs/quickstart.yaml", *overrides, *tiny)


@pytest.fixture
def weights_folder(state, tmp_path):
    torch.save(state, tmp_path / "resnest14.pth")
    return {"RESNEST_D2_WEIGHTS": tmp_path, "FVCORE_CACHE": tmp_path / "cache"}


def test_training_starts_from_a_backbone_by_name(weights_folder, run_python, tmp_path):
    result = run_python(*quickstart_on(tmp_path, "MODEL.WEIGHTS", "resnest://resnest14"), env=weights_folder)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "weights matched with submodule backbone.bottom_up" in result.stdout


def test_evaluating_a_backbone_is_refused_and_names_the_random_heads(weights_folder, run_python, tmp_path):
    args = quickstart_on(tmp_path, "--eval-only", "MODEL.WEIGHTS", "resnest://resnest14")
    result = run_python(*args, env=weights_folder)
    assert_one_line_error(
        result, "holds no weights for backbone.fpn_lateral2", "proposal_generator.rpn_head",
        "roi_heads.box_head", "roi_heads.mask_head", "--allow-random-weights",
    )  # fmt: skip
    allowed = run_python(args[0], "--allow-random-weights", *args[1:], env=weights_folder)
    assert allowed.returncode == 0, allowed.stderr[-2000:]
    assert "Evaluation results for bbox" in allowed.stdout


def test_weight_that_is_nowhere_ends_training_in_one_line(run_python, tmp_path):
    env = {"RESNEST_D2_WEIGHTS": tmp_path, "FVCORE_CACHE": tmp_path / "cache"}
    result = run_python(*quickstart_on(tmp_path, "MODEL.WEIGHTS", "resnest://cascade_resnest50"), env=env)
    assert_one_line_error(
        result, "resnest://cascade_resnest50 is not on this machine. Put faster_cascade_rcnn_ResNeSt_50",
        str(Path(tmp_path, "cache", "resnest_d2")), "RESNEST_D2_WEIGHTS",
    )  # fmt: skip

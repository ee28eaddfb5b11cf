"""Memory for tensors on the CPU: kept when freed, unless the user has other plans."""

import ctypes
import json
import os
import sys
from types import SimpleNamespace

import forks
import pytest
import torch
from detectron2.utils.events import EventStorage
from support import ROOT

from resnest_d2 import UserError, model_zoo
from resnest_d2.engine.failures import named_failures
from resnest_d2.engine.memory import keep_freed_memory
from resnest_d2.engine.results import RecordRun, environment

# Pages of 4 KB, whatever the machine is set to: huge ones have a 512th of the faults, and are freed as a whole.
SMALL_PAGES = "import ctypes; ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE"

# Faults while ten tensors of 64 MB are made one after the other.
SCRIPT = f"""{SMALL_PAGES}
import json, resource, sys, torch
from resnest_d2.engine.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(20):  # until the heap has holes that fit
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""


def printed(script, *words, **environment):
    """What a process prints as JSON in the end. Malloc has no settings there until it makes some."""
    environment = {**os.environ, **environment}
    done = forks.run(["-c", script, *words], cwd=ROOT, environment=environment, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    assert printed(SCRIPT, "leave")[1] > 100_000  # 160,000 pages, each time anew
    kept, number = printed(SCRIPT, "keep")
    assert kept is True
    assert number < 1000


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_in_the_environment_stay(name, monkeypatch):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("malloc is asked for something"))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("platform", ("darwin", "win32"))
def test_where_malloc_is_not_glibcs_nothing_is_asked_of_it(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no library has that name on Windows"))
    assert keep_freed_memory() is False


def test_a_run_on_the_cpu_leaves_a_visible_gpu_alone(monkeypatch):
    """Asking CUDA anything but whether it is there makes a context of hundreds of MB on the first GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is touched"))
    hook, storage = RecordRun(dict, torch.nn.Linear(1, 1)), EventStorage()
    hook.trainer = SimpleNamespace(storage=storage)
    hook.before_train()
    hook.after_step()
    assert "max_mem_mb" not in storage.histories()
    assert environment(torch.device("cpu"))["gpu"] is None
    cfg = model_zoo.get_config("mask_resnest50")
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(UserError) as error, named_failures(cfg):
        torch.empty(10**13)
    assert "SOLVER.AMP" not in str(error.value)


# Resident MB after tensors of 1 MB are freed between small ones that stay.
HOLES = (
    SMALL_PAGES
    + r"""
import json, re, torch
from resnest_d2.engine.memory import give_back_free_memory, keep_freed_memory
def resident():
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024
if not keep_freed_memory():  # the user has made these settings
    ctypes.CDLL(None).mallopt(-4, 0)
    ctypes.CDLL(None).mallopt(-1, -1)
before, stays = resident(), []
for _ in range(3):
    large = []
    for _ in range(200):
        large.append(torch.ones(2**18))
        stays.append(torch.ones(2**10))
    del large
full = resident()
give_back_free_memory()
print(json.dumps([full - before, resident() - before]))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_free_memory_between_what_stays_goes_back():
    full, after = printed(HOLES)
    assert full > 180 and after < 30
    full, after = printed(HOLES, MALLOC_MMAP_MAX_="0")
    assert full > 180 and after > 150  # the user's own settings

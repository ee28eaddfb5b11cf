"""Memory for tensors on the CPU: kept when freed, unless the user has other plans."""

import json
import subprocess
import sys

import pytest

# Faults of pages of 4 KB while ten tensors of 64 MB are made one after the other.
SCRIPT = """
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


def faults(mode, **environment):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, mode]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults("leave")[1] > 100_000  # 160,000 pages, each time anew
    kept, number = faults("keep")
    assert kept is True
    assert number < 1000


@pytest.mark.parametrize("name", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_in_the_environment_stay(name):
    values = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert faults("keep", **{name: values.get(name, "1000000")})[0] is False

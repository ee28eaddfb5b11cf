"""Weight files by the thousand, each with something wrong, and what came of reading and converting them.

python -m robust.fuzz [--count 20000] [--seed 0] [--only INDEX]     (in tests/)

A file is read, or refused in one line that names it: no traceback, no signal, no hang, and no memory beyond a
bound. Files are read in processes forked from this one, many in each.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import mmap
import os
import pickle
import pickletools
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from safetensors.torch import save as to_safetensors

from resnest_d2 import ResNeSt, UserError
from resnest_d2.checkpoint import convert, read_weights

#: Bytes of memory that a file of 100 kB may cost, at most.
_MEMORY = 400 << 20
_SECONDS = 20
_PER_PROCESS = 500
_OUTCOMES = ("not run", "read", "converted", "refused", "traceback", "signal", "memory", "hung")
GOOD = ("read", "converted", "refused")
_NUMBERS = (
    0,
    1,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**64 - 1,
)


class Fuzzed(NamedTuple):
    """What came of the files.

    Attributes:
        outcomes: how many by outcome.
        bad: index and what is wrong.
        seconds: it took.
    """

    outcomes: Dict[str, int]
    bad: List[Tuple[int, str]]
    seconds: float


def originals() -> Dict[str, bytes]:
    """Undamaged files of every format: of few tensors, so that most damage is to structure, and of a network."""
    torch.manual_seed(0)
    network = ResNeSt(14, stem_width=4, res2_out_channels=8, bottleneck_width=2).state_dict()
    few = collections.OrderedDict(
        a=torch.arange(12.0).reshape(3, 4), b=torch.ones(3).half(), c=torch.tensor(5)
    )
    few["d"] = few["a"].t()
    wrapped = {
        "model": few,
        "iteration": 7,
        "note": "text",
        "list": [1, 2.5, None, True, {"x": ()}, {3}, b"bytes"],
    }
    arrays = {"model": {k: v.numpy() for k, v in few.items()}, "rate": np.float32(0.5), "on": np.bool_(True)}
    arrays["columns"] = np.asfortranarray(np.ones((2, 3), ">f4"))
    files = {"safetensors, few": to_safetensors({k: v.contiguous() for k, v in few.items()})}
    files["safetensors, network"] = to_safetensors(network)
    for title, content in (("few", wrapped), ("arrays", arrays), ("network", {"state_dict": network})):
        files[f"zip, {title}"] = _saved(content)
        files[f"legacy, {title}"] = _saved(content, _use_new_zipfile_serialization=False)
    for protocol in range(6):
        files[f"pickle {protocol}, arrays"] = pickle.dumps(arrays, protocol)
    files["pickle 2, network"] = pickle.dumps({k: v.numpy() for k, v in network.items()}, 2)
    return files


def _saved(content: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def damaged(files: Dict[str, bytes], seed: int, index: int) -> Tuple[str, bytes]:
    """The file of that number: its name says what was done to which original."""
    rng = np.random.default_rng([seed, index])
    title = str(rng.choice(list(files)))
    content, ways = files[title], []
    inside = title.startswith("zip") and rng.random() < 0.7
    part = _pickle_of(content) if inside else content
    for _ in range(rng.integers(1, 4)):
        way = _WAYS[rng.integers(len(_WAYS))]
        ways.append(way.__name__.strip("_"))
        part = way(bytearray(part), rng, files)
    return f"{title}: {', '.join(ways)}", _with_pickle(content, bytes(part)) if inside else bytes(part)


def _pickle_of(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return source.read(next(name for name in source.namelist() if name.endswith("/data.pkl")))


def _with_pickle(archive: bytes, content: bytes) -> bytes:
    """The archive with another pickle, whose checksum is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(target, "w") as changed:
        for info in source.infolist():
            changed.writestr(
                info.filename, content if info.filename.endswith("/data.pkl") else source.read(info)
            )
    return target.getvalue()


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, but mostly near the start, where structure is."""
    length = max(1, len(content))
    return int(rng.integers(length if rng.random() < 0.3 else min(length, 3000)))


def _flip(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    for _ in range(rng.integers(1, 8)):
        if content:
            content[_place(content, rng)] ^= 1 << rng.integers(8)
    return content


def _replace(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    for _ in range(rng.integers(1, 6)):
        if content:
            content[_place(content, rng)] = int(rng.integers(256))
    return content


def _cut(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    return content[: _place(content, rng)]


def _delete(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    start = _place(content, rng)
    del content[start : start + int(rng.integers(1, 40))]
    return content


def _repeat(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    start, to = _place(content, rng), _place(content, rng)
    content[to:to] = content[start : start + int(rng.integers(1, 200))]
    return content


def _number(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    """A binary number that is at some limit."""
    start, code = _place(content, rng), str(rng.choice(["<H", "<I", "<Q", ">I", ">d"]))
    number = int(rng.choice(np.array(_NUMBERS, object)))
    size = struct.calcsize(code)
    content[start : start + size] = struct.pack(code, number if code == ">d" else number % 256**size)
    return content


def _digits(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    """A number in text, as of a shape in safetensors' header or a pickle of protocol 0."""
    runs = list(re.finditer(rb"\d+", bytes(content[:5000])))
    if runs:
        start, end = runs[rng.integers(len(runs))].span()
        number = int(rng.choice(np.array(_NUMBERS, object)))
        content[start:end] = str(number if rng.random() < 0.8 else -number).encode()
    return content


def _splice(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    other = files[str(rng.choice(list(files)))]
    start = _place(bytearray(other), rng)
    to = _place(content, rng)
    content[to : to + int(rng.integers(200))] = other[start : start + int(rng.integers(1, 200))]
    return content


def _steps(content: bytearray, rng: np.random.Generator, files: Dict[str, bytes]) -> bytes:
    """Steps of a pickle left out, repeated, exchanged, or put between others."""
    starts = []
    try:
        for _, _, position in pickletools.genops(bytes(content)):
            starts.append(position)
    except Exception:
        pass
    if len(starts) < 3:
        return content
    steps = [bytes(content[a:b]) for a, b in zip(starts, [*starts[1:], len(content)])]
    for _ in range(rng.integers(1, 4)):
        i, j = (int(rng.integers(len(steps))) for _ in range(2))
        kind = rng.integers(5)
        if kind == 0:
            steps[i] = b""
        elif kind == 1:
            steps[i] = steps[j]
        elif kind == 2:
            steps[i], steps[j] = steps[j], steps[i]
        elif kind == 3:
            steps.insert(i, steps[j])
        else:
            steps.insert(i, _STEPS[rng.integers(len(_STEPS))])
    return b"".join(steps)


_STEPS = (
    *(
        b"R",
        b"b",
        b"s",
        b"u",
        b"a",
        b"e",
        b"(",
        b"0",
        b"1",
        b"2",
        b"t",
        b"l",
        b"d",
        b"}",
        b"]",
        b")",
        b"\x85",
    ),
    *(
        b"\x86",
        b"\x87",
        b"\x81",
        b"\x92",
        b"\x93",
        b"\x94",
        b"\x90",
        b"\x91",
        b"\x8f",
        b"Q",
        b"N",
        b"o",
        b".",
    ),
    *(
        b"r\xff\xff\xff\x7f",
        b"j\xff\xff\xff\x7f",
        b"\x96" + b"\xff" * 7 + b"\x7f",
        b"\x8e" + b"\xff" * 7 + b"\x7f",
    ),
    *(b"\x8b\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x97", b"\x98"),
    *(b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"ctorch\nSize\n"),
    *(b"cbuiltins\nbytearray\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"),
    *(b"ctorch\nFloatStorage\n", b"ccollections\nCounter\n", b"X\x03\x00\x00\x00|O8", b"X\x02\x00\x00\x00V9"),
)
_WAYS: Tuple[Callable, ...] = (
    *(_flip, _replace, _cut, _delete, _repeat, _number, _digits, _splice, _steps, _steps, _steps),
)


def fuzz(folder: Path, count: int, seed: int = 0, report: Callable[[str], None] = print) -> Fuzzed:
    """Read ``count`` damaged files, a share in each processor. What went wrong with one is kept in ``folder``."""
    torch.set_num_threads(1)  # threads do not survive a fork
    files, start = originals(), time.time()
    outcomes = mmap.mmap(-1, count)
    processors = os.cpu_count() or 1
    shares = [range(i * count // processors, (i + 1) * count // processors) for i in range(processors)]
    children = []
    for share in shares:
        children.append(os.fork())
        if children[-1] == 0:
            try:
                _read_share(folder, files, seed, share, outcomes)
            finally:
                os._exit(0)
    said = start
    for child in children:
        while not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.05)
            if time.time() > said + 10:
                said = time.time()
                report(f"{count - outcomes[:].count(0)} of {count} files")
    names = [_OUTCOMES[code] for code in outcomes[:]]
    bad = []
    for index, outcome in enumerate(names):
        if outcome not in GOOD:
            title, content = damaged(files, seed, index)
            (folder / f"{index}.pth").write_bytes(content)
            note = folder / f"{index}.txt"
            bad.append((index, f"{outcome}, {title}: {note.read_text()[-600:] if note.exists() else ''}"))
    return Fuzzed(dict(collections.Counter(names)), bad, time.time() - start)


def _read_share(folder: Path, files: Dict[str, bytes], seed: int, share: range, outcomes: mmap.mmap) -> None:
    """Read these files, in children, so that one which ends its process is known and the next is read."""
    current = mmap.mmap(-1, 8)  # the index of the file that is read
    done = share.start
    while done < share.stop:
        end = min(done + _PER_PROCESS, share.stop)
        child = os.fork()
        if child == 0:
            try:
                _read_all(folder, files, seed, range(done, end), current, outcomes)
            finally:
                os._exit(0)
        status = _watch(child, current)
        if status == 0:
            done = end
            continue
        (at,) = struct.unpack("<q", current)
        outcomes[at] = _OUTCOMES.index("hung" if status is None else "signal")
        (folder / f"{at}.txt").write_text(f"signal {status}")
        done = at + 1


def _watch(child: int, current: mmap.mmap) -> int | None:
    """The status that a child ends with; None where it was too long at one file, and has been killed."""
    at, since = -1, time.time()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        (now,) = struct.unpack("<q", current)
        if now != at:
            at, since = now, time.time()
        elif time.time() - since > _SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.01)


def _read_all(
    folder: Path,
    files: Dict[str, bytes],
    seed: int,
    indices: range,
    current: mmap.mmap,
    outcomes: mmap.mmap,
) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 2 * _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    path = folder / f"{os.getpid()}.pth"
    for index in indices:
        struct.pack_into("<q", current, 0, index)
        path.write_bytes(damaged(files, seed, index)[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcome, said = read_one(path)
        if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > _MEMORY:
            outcome, said = "memory", f"more than {_MEMORY} bytes"
        if outcome not in GOOD:
            (folder / f"{index}.txt").write_text(said)
        outcomes[index] = _OUTCOMES.index(outcome)
    path.unlink()


def read_one(path: Path) -> Tuple[str, str]:
    """What comes of a file, and what was said."""
    outcome = "refused"
    try:
        content = read_weights(path)
        outcome = "read"
        convert(content, str(path))
        return "converted", ""
    except UserError as e:
        said = str(e)
        if "not enough memory" in said:
            return "memory", said
        if "\n" in said or len(said) > 1000 or str(path) not in said:
            return "traceback", f"no line that names the file: {said}"
        return outcome, said
    except BaseException:
        return "traceback", traceback.format_exc()


def main(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        if args.only is not None:
            title, content = damaged(originals(), args.seed, args.only)
            path = Path(name, "file.pth")
            path.write_bytes(content)
            print(title, *read_one(path), sep="\n")
            return 0
        result = fuzz(Path(name), args.count, args.seed)
    print(json.dumps(result.outcomes), f"{result.seconds:.0f} s")
    for index, what in result.bad:
        print(index, what)
    return bool(result.bad)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read this one, in this process")
    sys.exit(main(parser.parse_args()))

"""The ground floor: files that are not what they should be, and writing that is complete or not at all."""

import argparse
import errno
import os
import stat
from pathlib import Path

import pytest

from resnest_d2 import UserError
from resnest_d2.files import (
    atomic_write_text,
    atomic_writer,
    check_depth,
    inside,
    parse_json,
    read_json,
    read_text,
    unused_name,
    user_path,
    writing,
)


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.mark.parametrize("read", [read_text, read_json])
def test_what_is_no_file_is_refused_by_name(tmp_path, fifo, read):
    for path, reason in ((fifo, "FIFO"), (tmp_path, "folder"), (tmp_path / "none", "No such file")):
        with pytest.raises(UserError, match=rf"--x .*{path.name}.*{reason}|cannot read --x .*{reason}"):
            read(path, "--x")
    with pytest.raises(UserError, match="null byte"):
        read("a\0b")
    with pytest.raises(UserError, match=r"^'' is a folder"):
        read("")


def test_json_is_read_with_its_mark_and_refused_when_broken_or_deep(tmp_path):
    file = tmp_path / "file.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, "]]]]"]}')
    assert read_json(file) == {"a": [1, "]]]]"]}
    for content, reason in ((b"{", "not valid JSON"), (b"\xff{}", "UTF-8"), (b"[" * 100000, "nested")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=reason):
            read_json(file)


@pytest.mark.parametrize("text, depth", [
    ('[{"a": [1, "]]]", {"b": []}]}, []]', 5),
    ('["\\\\", [["\\"[["]], "\\\\\\"[", [[[]]]]', 4),
    ('["[", [], "\\u005b[", {}]', 2),
    ("[" * 100 + "]" * 100 + '"' + "[" * 1000 + '\\""', 100),
    ("[]" * 1000 + "[" * 101, 101),
])  # fmt: skip
def test_depth_counts_brackets_outside_of_strings(text, depth, monkeypatch):
    monkeypatch.setattr("resnest_d2.files.MAX_DEPTH", depth)
    check_depth(text, "x")
    monkeypatch.setattr("resnest_d2.files.MAX_DEPTH", depth - 1)
    with pytest.raises(UserError, match=f"x is nested more than {depth - 1} deep"):
        check_depth(text, "x")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"c": 0, "a": 1, "\\u0061": 2}}]'])
def test_a_key_that_is_there_twice_is_named(text):
    with pytest.raises(UserError, match=r"^x has 'a' twice in one object"):
        parse_json(text, "x")
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}], "A": 3}', "x")["A"] == 3


def test_writing_leaves_devices_folders_and_links_what_they_are(tmp_path, fifo):
    for target in (fifo, tmp_path):
        with pytest.raises(UserError, match="cannot write"):
            atomic_write_text(target, "new")
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_writing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")

    with pytest.raises(UserError, match=r"cannot write .*file \(full\); make room"):
        with atomic_writer(tmp_path / "file") as file:
            file.write(b"half")
            raise OSError("full")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_files_have_the_permissions_that_the_user_asks_for(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_names_that_a_file_gives_stay_in_their_folder(tmp_path):
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to("a")
    for name in ("x", "b/x", "b/../x", "./x", "new/x"):
        assert inside(tmp_path / "link", name, "s.json") == folder / os.path.normpath(name)
    for name in (
        "../x",
        "/x",
        "b/../../x",
        "out/x",
        "",
        ".",
        "..",
        "../ab/x",
        "x\0",
        "\ud800",
        str(tmp_path / "ab"),
    ):
        with pytest.raises(UserError, match=r"s\.json: the file name .* does not stay inside"):
            inside(folder, name, "s.json")
    assert inside(folder, "out/x", "s.json", links=True) == folder / "out/x"
    for name in ("../x", "b/../../x", "/x", "x\0", ""):
        with pytest.raises(UserError, match="does not stay inside"):
            inside(folder, name, "s.json", links=True)


def test_unused_names_are_short_and_different_whatever_the_case():
    used = set()
    stems = ("a", "A", "a", "a-2", "b" * 300, "b" * 300, "\u732b" * 120, "\udcff", "\udcff")
    names = [unused_name(stem, ".png", used) for stem in stems]
    assert names[:4] == ["a.png", "A-2.png", "a-3.png", "a-2-2.png"]
    assert len({name.casefold() for name in names}) == len(names)
    assert all(len(name.encode()) <= 255 for name in names)


def test_what_the_system_said_is_told_where_a_library_died_of_it(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*file \(No space left on device\); make room"):
        with atomic_writer(tmp_path / "file"):
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904


def test_an_argument_that_is_empty_is_not_the_current_folder():
    with pytest.raises(argparse.ArgumentTypeError, match="must not be empty"):
        user_path("")
    assert user_path(".") == Path(".")


def test_room_is_no_remedy_for_what_is_closed_or_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"\(Not a directory\); make it writable, or name another place"):
        atomic_write_text(tmp_path / "file/below", "x")
    with pytest.raises(UserError, match=r"\(Permission denied\); make it writable and go on"):
        with writing("x", "make room and go on"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

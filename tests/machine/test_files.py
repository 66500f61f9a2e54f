"""Files appear whole or not at all, and errors say what to do."""

import contextlib
import errno
import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewsight.errors import RunError
from fewsight.machine import files, locks


def full_disk(*_args: Any, **_kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A file that was written before."""
    files.write_text(tmp_path / "kept.txt", "old")
    return tmp_path / "kept.txt"


def assert_untouched(old: Path) -> None:
    assert old.read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["kept.txt"], "no half-written file is left"


def test_write_replaces_and_leaves_nothing_beside(old: Path) -> None:
    files.write_text(old, "näu")
    assert old.read_bytes() == "näu".encode()
    assert [path.name for path in old.parent.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.write_bytes", "pathlib.Path.replace"])
def test_full_disk_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(where, full_disk)
    with pytest.raises(RunError, match=r"cannot write .*kept\.txt: No space left on device.*free some space"):
        files.write_text(old, "new")
    monkeypatch.undo()
    assert_untouched(old)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), pytest.raises(RunError, match="No space left on device")),
        (ZeroDivisionError(), pytest.raises(ZeroDivisionError)),
    ],
)
def test_failure_inside_the_block_leaves_the_old_file(
    old: Path, error: Exception, raised: contextlib.AbstractContextManager[Any]
) -> None:
    with raised, files.replacing(old) as part:
        part.write_text("half of the n")
        raise error
    assert_untouched(old)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "photos/1.png"),
        PermissionError(errno.EACCES, "Permission denied", b"photos/1.png"),
        OSError(errno.ENOSPC, "No space left on device", "elsewhere/scores"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        OSError("image file is truncated"),
    ],
    ids=str,
)
def test_error_of_another_file_is_raised_as_it_is(old: Path, error: OSError) -> None:
    with pytest.raises(OSError) as caught, files.replacing(old):
        raise error
    assert caught.value is error
    assert_untouched(old)


def test_copy_of_a_file_that_is_gone_names_it(old: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"), files.replacing(old) as part:
        shutil.copyfile(tmp_path / "gone", part)
    with pytest.raises(FileNotFoundError, match="gone"):
        files.copy(tmp_path / "gone", old)
    assert_untouched(old)
    with pytest.raises(RunError, match=r"cannot write .*nowhere/kept\.txt: No such file or directory.*create it"):
        files.copy(old, tmp_path / "nowhere" / "kept.txt")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "allow this user to write there, or choose another folder."),
        (errno.EROFS, "choose a folder on another file system."),
        (errno.EDQUOT, "free some of your quota, then try again."),
        (errno.EIO, "then try again."),
    ],
)
def test_advice_fits_the_error(old: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str) -> None:
    def fail(*_args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(RunError) as caught:
        files.write_text(old, "new")
    expected = f"cannot write {old}: {os.strerror(number)}. Files that were saved before are intact; {advice}"
    assert str(caught.value) == expected


def test_new_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "new.txt") as part:
        part.write_text("half")
        assert not (tmp_path / "new.txt").exists()
        part.write_text("whole")
    assert (tmp_path / "new.txt").read_text() == "whole"


def test_new_file_has_the_permissions_of_the_old_one(old: Path) -> None:
    for mode in (0o600, 0o444, 0o664):
        old.chmod(mode)
        with files.replacing(old) as part:
            assert not part.stat().st_mode & ~mode & 0o077, "nobody else reads it while it is written"
            part.write_text("new")
        assert (stat.S_IMODE(old.stat().st_mode), old.read_text()) == (mode, "new")


def test_output_through_a_link_keeps_the_link(old: Path) -> None:
    links = old.parent / "links"
    links.mkdir()
    for name, leads_to in (("near", old), ("far", Path("near")), ("new", old.parent / "new.txt")):
        (links / name).symlink_to(leads_to)
        files.check_target(links / name, "--out")
        files.write_text(files.link_target(links / name), name)
        assert ((links / name).is_symlink(), (links / name).read_text()) == (True, name)
    assert old.read_text() == "far"
    assert sorted(path.name for path in links.iterdir()) == ["far", "near", "new"]
    assert files.link_target(old) == old


def test_link_in_a_run_leads_no_write_out_of_it(old: Path) -> None:
    run = old.parent / "run"
    run.mkdir()
    (run / "calibration.json").symlink_to(old)
    files.write_text(run / "calibration.json", "new")
    assert (old.read_text(), (run / "calibration.json").is_symlink()) == ("old", False)


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "socket"])
def test_what_is_no_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path, made = tmp_path / "out.json", tmp_path / ("pipe" if kind.startswith("link") else "out.json")
    with socket.socket(socket.AF_UNIX) as endpoint:
        if kind == "device":
            try:
                os.mknod(made, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
            except (OSError, AttributeError):
                pytest.skip("this user makes no devices")
        elif kind == "socket":
            endpoint.bind(os.path.relpath(made))  # its name has a limit
        else:
            os.mkfifo(made)
    if made != path:
        path.symlink_to(made)
    before = path.lstat(), made.lstat()
    with pytest.raises(RunError, match=r"--json .*out\.json: a device or a pipe; give the name of a file$"):
        files.check_target(path, "--json")
    with pytest.raises(RunError, match=r"cannot write .*: a device or a pipe, not a file; choose another name"):
        files.write_json(files.link_target(path), {})
    assert (path.lstat(), made.lstat()) == before


def test_links_that_lead_nowhere_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunError, match=r"--out .*loop: a link that leads back to itself"):
        files.check_target(tmp_path / "loop", "--out")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "file")
    with pytest.raises(RunError, match=r"--out .*gone: the folder .*nowhere does not exist; create it first"):
        files.check_target(tmp_path / "gone", "--out")


def test_unwritable_folder_is_refused(old: Path) -> None:
    below = old / "below" / "file.txt"  # a file is no folder
    with pytest.raises(RunError, match=r"cannot write .*: Not a directory"):
        files.write_text(below, "text")
    with pytest.raises(RunError, match=r"cannot write .*: Not a directory"):
        files.make_folder(below.parent)
    assert_untouched(old)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused(old: Path) -> None:
    old.parent.chmod(0o500)
    try:
        with pytest.raises(RunError, match=r"cannot write .*: Permission denied"):
            files.write_text(old, "new")
    finally:
        old.parent.chmod(0o700)
    assert_untouched(old)


def test_parts_of_killed_processes_are_removed(old: Path) -> None:
    (old.parent / ".kept.txt.0123abcd.part").write_text("half")
    files.remove_parts(old.parent)
    assert_untouched(old)
    files.remove_parts(old.parent / "not there")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_floats_keep_every_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.getbasetemp() / "float.json"
    files.write_json(path, [value])
    assert files.read_json(path, list[float], "a test")[0].hex() == value.hex()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_is_not_a_number(old: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(old, {"loss": value})
    assert_untouched(old)


def test_broken_or_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gone\.json is missing"):
        files.read_json(tmp_path / "gone.json", list[int], "a test")
    (tmp_path / "cut.json").write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(RunError, match=r"cannot read .*cut\.json"):
        files.read_json(tmp_path / "cut.json", list[int], "a test")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match=r"cannot read .*binary\.json"):
        files.read_json(tmp_path / "binary.json", list[int], "a test")


@dataclass(frozen=True)
class Part:
    name: str
    share: float = 0.5


@dataclass(frozen=True)
class Whole:
    count: int
    sides: tuple[int, int]
    parts: tuple[Part, ...]
    first: Part | None = None
    rest: dict[str, Any] = field(default_factory=dict)


WHOLE = {"count": 2, "sides": [3, 4], "parts": [{"name": "a"}, {"name": "b", "share": 1}], "rest": {"any": [None]}}


def test_json_is_read_as_a_dataclass(tmp_path: Path) -> None:
    files.write_json(tmp_path / "whole.json", {**WHOLE, "of a newer version": 1})
    parts = (Part("a"), Part("b", 1.0))
    read = files.read_json(tmp_path / "whole.json", Whole, "a test")
    assert read == Whole(2, (3, 4), parts, None, {"any": [None]})
    assert files.parse_json_lines([json.dumps(WHOLE)] * 2, Whole) == [read] * 2
    assert json.loads(json.dumps(asdict(read))) == {**WHOLE, "first": None, "parts": [asdict(part) for part in parts]}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"count": "2"}, "count: Input should be a valid integer"),
        ({"count": 2.0}, "count: Input should be a valid integer"),
        ({"count": True}, "count: Input should be a valid integer"),
        ({"sides": [1]}, "sides.1: Field required"),
        ({"sides": "ab"}, "sides: Input should be a valid tuple"),
        ({"parts": [{"name": 1}]}, "parts.0.name: Input should be a valid string"),
        ({"parts": [{"name": "a", "share": "0.5"}]}, "parts.0.share: Input should be a valid number"),
        ({"parts": [{"share": 0.5}]}, "parts.0.name: Field required"),
        ({"parts": {"name": "a"}}, "parts: Input should be a valid tuple"),
        ({"first": []}, "first: Input should be a dictionary or an instance of Part"),
        ({"rest": None}, "rest: Input should be a valid dictionary"),
    ],
    ids=str,
)
def test_value_of_another_type_is_named(tmp_path: Path, change: dict[str, Any], fault: str) -> None:
    file = tmp_path / "whole.json"
    files.write_json(file, {**WHOLE, **change})
    with pytest.raises(RunError) as caught:
        files.read_json(file, Whole, "`fewsight train`")
    assert str(caught.value) == f"{file} is not what `fewsight train` wrote: {fault}; restore it from a copy"
    with pytest.raises(ValueError, match=re.escape(f"line 2: {fault}")):
        files.parse_json_lines([json.dumps(WHOLE), json.dumps({**WHOLE, **change})], Whole)


@pytest.mark.parametrize("value", [[], 3, None, "text"])
def test_json_of_another_kind_is_refused(tmp_path: Path, value: Any) -> None:
    files.write_json(tmp_path / "whole.json", value)
    with pytest.raises(RunError, match=r"whole\.json is not what a test wrote: Input should be a dictionary"):
        files.read_json(tmp_path / "whole.json", Whole, "a test")


def test_file_names_that_are_not_utf8_are_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    files.write_json(tmp_path / "names.json", {**WHOLE, "parts": [{"name": name}]})
    assert files.read_json(tmp_path / "names.json", Whole, "a test").parts == (Part(name),)


@pytest.mark.parametrize("line", ["", "{", "[" * 200_000, "1" * 5000])
def test_line_that_is_not_json_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="line 1: "):
        files.parse_json_lines([line], list[int])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"format": 3}, "run format 3, but this fewsight .* reads up to 2; upgrade fewsight"),
        ({"format": 0}, r"run\.json is not what a test wrote: it has the format 0"),
        ({"format": "1"}, r"run\.json is not what a test wrote: it has the format '1'"),
        ({}, r"run\.json is not what a test wrote: it has the format None"),
        ([], r"run\.json is not what a test wrote: it has the format None"),
    ],
)
def test_format_is_checked_first(tmp_path: Path, value: Any, message: str) -> None:
    files.write_json(tmp_path / "run.json", value)
    with pytest.raises(RunError, match=message):
        files.read_json(tmp_path / "run.json", Whole, "a test", newest_format=2)


def test_digest_changes_with_every_bit() -> None:
    data = bytes(range(256))
    flipped = [
        bytes(byte ^ (1 << 3) if index == changed else byte for index, byte in enumerate(data))
        for changed in range(256)
    ]
    assert len({files.digest_of(content) for content in [data, *flipped]}) == 257


def test_folder_that_another_process_works_in_is_refused(tmp_path: Path) -> None:
    assert locks.is_locked(tmp_path) is False
    assert not list(tmp_path.iterdir()), "the query leaves no file"
    holds = "import sys, time; from pathlib import Path; from fewsight.machine.locks import locked\n"
    holds += "with locked(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holds, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        refused = pytest.raises(RunError, match="another process is training there; wait until it ends")
        with refused, locks.locked(tmp_path, "training"):
            pytest.fail("two at once")
        assert locks.is_locked(tmp_path)
        assert locks.why_unfinished(tmp_path).startswith("a process is training it now; wait until it ends")
        other.kill()  # as after a power failure: nothing is cleaned up
    assert locks.is_locked(tmp_path) is False
    assert locks.why_unfinished(tmp_path).endswith(f"finish it with `fewsight train --resume {tmp_path}`")
    with locks.locked(tmp_path, "training"):
        pass
    with locks.locked(tmp_path, "training"):
        pass


def test_file_system_without_locks_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_values: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(locks.FileLock, "acquire", refuse)
    with locks.locked(tmp_path, "training"):
        (tmp_path / "done").touch()
        assert locks.is_locked(tmp_path), "a mark is seen where it can be set"
    assert (tmp_path / "done").exists()
    assert locks.is_locked(tmp_path) is False

    def cannot(*_args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.fcntl", cannot)
    with locks.locked(tmp_path, "training"):
        assert locks.is_locked(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the lock is taken for a moment")
def test_looking_takes_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a `--resume` that starts while `fewsight runs` looks does not fail; a folder may be read-only too."""
    with locks.locked(tmp_path, "training"):
        monkeypatch.setattr(locks.FileLock, "acquire", lambda *_args, **_values: pytest.fail("a lock is taken"))
        (tmp_path / locks.LOCK).chmod(0o400)
        assert locks.is_locked(tmp_path) is True
    assert locks.is_locked(tmp_path) is False


@pytest.mark.parametrize("kind", ["link outside", "device", "pipe", "broken link", "missing"])
def test_path_that_is_not_a_regular_file_inside_the_folder_is_refused(kind: str, tmp_path: Path) -> None:
    folder, file = tmp_path / "run", tmp_path / "run" / "run.json"
    folder.mkdir()
    (tmp_path / "outside.json").write_text("{}")
    if kind == "link outside":
        file.symlink_to(tmp_path / "outside.json")
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "broken link":
        file.symlink_to(tmp_path / "nothing")
    with pytest.raises(RunError):
        files.check_inside(file, folder)
    with pytest.raises(RunError):
        files.read_json(file, dict[str, int], "a test")


def test_link_within_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("[1]")
    (tmp_path / "link.json").symlink_to(tmp_path / "own.json")
    assert files.read_json(tmp_path / "link.json", list[int], "a test") == [1]


def test_json_that_is_far_too_large_or_deep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(RunError, match="cannot read"):
        files.read_json(tmp_path / "deep.json", list[int], "a test")
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 10)
    with pytest.raises(RunError, match="so it is not a file that fewsight wrote"):
        files.read_json(tmp_path / "deep.json", list[int], "a test")

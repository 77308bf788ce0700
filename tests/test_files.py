import errno
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.files import (
    atomic_folder,
    environment_variables,
    explain_os_error,
    folder_removed_on_error,
    free_bytes,
    read_json,
    read_json_lines,
    write_atomically,
    write_json,
)
from helpers.settings import SettingsError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/before").write_text("x")
    return tmp_path / "data"


def names(folder):
    return sorted(path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("[!.]*"))


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for text in ("before", "after"):
        write_atomically(tmp_path / "card.md", text)
    assert (tmp_path / "card.md").read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]


def test_concurrent_writers_do_not_mix_their_files(folder):
    def write(letter):
        for _ in range(30):
            write_atomically(folder.with_name("a.json"), letter * 9000)
            with atomic_folder(folder) as new:
                for name in "ab":
                    (new / name).write_text(letter)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, "xy"))
    assert set(folder.with_name("a.json").read_text()) in ({"x"}, {"y"})
    assert (folder / "a").read_text() == (folder / "b").read_text()
    assert names(folder) == ["a.json", "data", "data/a", "data/b"]


@pytest.mark.parametrize("is_begun", [True, False])
def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch, is_begun):
    def fill_the_disk(path, text, **options):
        if is_begun:
            path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a.json", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("names", "is_left"), [([".train.lock"], False), ([".train.lock", "data.json"], True)])
def test_a_new_folder_is_removed_after_an_error_unless_it_holds_more_than_locks(tmp_path, names, is_left):
    with pytest.raises(SettingsError), folder_removed_on_error(tmp_path / "run"):
        for name in names:
            (tmp_path / "run" / name).touch()
        raise SettingsError
    assert (tmp_path / "run").exists() == is_left


def test_a_failing_block_can_remove_its_new_folder_itself(tmp_path):
    with pytest.raises(SettingsError), folder_removed_on_error(tmp_path / "run"):
        (tmp_path / "run").rmdir()
        raise SettingsError


def test_a_folder_that_existed_before_a_failing_block_stays(folder):
    (folder / "before").rename(folder / ".data.lock")
    with pytest.raises(SettingsError), folder_removed_on_error(folder):
        raise SettingsError
    assert folder.exists()


def test_json_round_trips(tmp_path):
    write_json(tmp_path / "run.json", {"a": [1, None]})
    assert read_json(tmp_path / "run.json") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1', "Expecting"),
        (b"[" * 10**6, "recursion"),
        (b"", "Expecting"),
        (b"[]", "it is not a JSON object"),
        (b'{"a": "\xff"}', "codec"),
    ],
)
def test_damaged_json_is_an_error_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"run.json is damaged \(.*{reason}"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("training.json", {"steps": "3"}, "steps is '3': input should be a valid integer"),
        ("training.json", {"steps": 0}, "steps is 0: input should be greater than 0"),
        ("training.json", {"tokens": -1}, "tokens is -1: input should be greater than or equal to 0"),
        ("training.json", {"seconds": math.nan}, "seconds is nan: input should be a finite number"),
        ("training.json", {"peak_bytes": 10**400}, "peak_bytes is 10+…: input should be less than"),
        ("training.json", {"predicted": 3}, r"predicted is 3: input should be a valid dictionary\)"),
        ("training.json", {"predicted": {"seconds": [1.0, "x"]}}, "predicted.seconds.1 is 'x'"),
        ("training.json", {"predicted": {"seconds": [1.0]}}, ".*at least 2 items"),
        ("training.json", {"predicted": {"seconds": [1, 2, 3]}}, ".*at most 2 items"),
        ("history.jsonl", {"step": 1, "loss": []}, r"loss is \[\]: input should be a valid number"),
        ("history.jsonl", {"loss": 2.0}, "step is missing"),
        ("settings.json", {"settings": []}, r"settings is \[\]: input should be a valid dictionary"),
        ("settings.json", {"settings": {"seed": []}}, r"settings.seed is \[\]: input should be hashable"),
        ("data.json", {"settings": {}, "source_sha256": None, "splits": {}}, "splits.train is missing"),
        ("evaluation.json", {"version": 1, "test": {"base": 3}}, "test.source is missing"),
        ("evaluation.json", {"version": 1, "copying": {"rows": []}}, ".*at least 1 item"),
        ("trainer_state.json", {"global_step": None}, "global_step is None: input should be a valid integer"),
        ("trial.json", {"parameters": "x"}, "parameters is 'x'"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_it(tmp_path, name, content, fault):
    path = tmp_path / name
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=rf"{name} is damaged \({fault}.*correct it, copy it again, or delete it"):
        (read_json_lines if name == "history.jsonl" else read_json)(path)


def test_a_history_may_hold_losses_that_are_not_finite(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": NaN, "grad_norm": Infinity, "more": []}')
    assert read_json_lines(tmp_path / "history.jsonl")[0]["more"] == []


def test_json_lines_are_read_and_a_truncated_line_is_an_error(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_json_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_json_lines(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st')
    with pytest.raises(SettingsError, match="is damaged"):
        read_json_lines(path)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), "The disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y cannot be used (Read-only file system): name"),
        (FileExistsError(errno.EEXIST, "File exists", "/x/y"), "/x/y cannot be used (File exists): name another path"),
        (ConnectionError("the peer left"), ""),
    ],
)
def test_only_operating_system_errors_about_files_are_explained(error, words):
    assert explain_os_error(error).startswith(words)
    assert bool(explain_os_error(error)) == bool(words)


@pytest.mark.skipif(sys.platform == "win32", reason="on Windows an open file may be the cause")
def test_outside_windows_a_permission_error_does_not_blame_an_open_file():
    refused = PermissionError(errno.EACCES, "Permission denied", "/x/y")
    assert explain_os_error(refused).startswith("/x/y cannot be used (Permission denied): name another path")


def test_on_windows_an_open_file_is_named_with_the_advice_to_close_it(tmp_path, monkeypatch):
    def replace(new, path):  # as Windows does while another program has the old file open
        raise PermissionError(errno.EACCES, "Access is denied", str(new), 5, str(path))

    monkeypatch.setattr("pathlib.Path.replace", replace)
    monkeypatch.setattr("helpers.files.time.sleep", lambda seconds: None)
    with pytest.raises(PermissionError) as error:
        write_atomically(tmp_path / "history.jsonl", "")
    words = f"{tmp_path / 'history.jsonl'} cannot be used (Access is denied): close the program that has it open"
    monkeypatch.setattr("helpers.files.os", SimpleNamespace(name="nt"))
    assert explain_os_error(error.value).startswith(words)
    assert "close" not in explain_os_error(FileExistsError(errno.EEXIST, "File exists", "/x/y"))


def test_a_complete_folder_replaces_the_old_one(folder):
    with atomic_folder(folder) as new:
        (new / "after").write_text("y")
        assert (folder / "before").exists()
    assert names(folder) == ["data", "data/after"]


def test_a_disk_without_permissions_keeps_weights_as_they_are(folder, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with atomic_folder(folder) as new:
        (new / "model.safetensors").touch()
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_an_error_leaves_the_old_folder_unchanged(folder):
    error = PermissionError(13, "Permission denied", "the/text.txt")  # about another file, so it is passed on
    with pytest.raises(PermissionError, match="text"), atomic_folder(folder) as new:
        (new / "after").write_text("y")
        raise error
    assert names(folder) == ["data", "data/before"]


def test_a_crash_between_the_two_renames_loses_nothing(folder):
    folder.rename(folder.with_name("data.old"))
    folder.with_name("data.new").mkdir()
    with pytest.raises(ZeroDivisionError), atomic_folder(folder):
        raise ZeroDivisionError
    assert names(folder) == ["data", "data/before"]


def test_a_folder_in_use_is_reported_and_stays(folder, monkeypatch):
    def in_use(self, target):
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr("pathlib.Path.rename", in_use)  # as Windows does where a file of it is open
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SettingsError, match=r"still there .*: restart the kernel"), atomic_folder(folder):
        pass
    assert names(folder) == ["data", "data/before"]


@pytest.mark.parametrize("left", [(), ("data.new",), ("data.old",)], ids=["none", "new", "old"])
def test_a_linked_folder_is_replaced_and_its_target_stays(folder, tmp_path, left):
    (tmp_path / "disk").mkdir()
    folder.rename(tmp_path / "disk/data")
    try:
        for name in ("data", *left):
            folder.with_name(name).symlink_to(tmp_path / "disk/data", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"this system cannot create links: {error}")
    for name in ("once", "twice"):
        with atomic_folder(folder) as new:
            (new / name).write_text("y")
    assert names(folder) == ["data", "data/twice", "disk", "disk/data", "disk/data/before"]


@pytest.mark.parametrize("left", ["data.new", "data.old"])
def test_a_leftover_folder_in_use_is_named(folder, monkeypatch, left):
    def in_use(path):  # as Windows does where a file of it is open, or may only be read
        raise PermissionError(13, "used by another process", str(path / "model.safetensors"))

    folder.with_name(left).mkdir()
    monkeypatch.setattr("helpers.files.shutil", SimpleNamespace(rmtree=in_use))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    words = rf"{left}, which .* cannot be removed .*: restart the kernel"
    with pytest.raises(SettingsError, match=words), atomic_folder(folder):
        pass
    assert names(folder) == ["data", left, "data/before"]


def test_a_folder_that_cannot_be_deleted_yet_hides_no_error_and_fails_no_write(folder, tmp_path, monkeypatch):
    def in_use(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "used by another process", str(path))

    monkeypatch.setattr("helpers.files.shutil", SimpleNamespace(rmtree=in_use))
    with atomic_folder(folder) as new:
        (new / "after").write_text("y")
    assert (folder / "after").exists()
    with pytest.raises(ZeroDivisionError), folder_removed_on_error(tmp_path / "run"), atomic_folder(tmp_path / "other"):
        raise ZeroDivisionError


def test_a_folder_briefly_held_by_a_virus_scanner_is_replaced(folder, monkeypatch):
    rename, refused = Path.rename, set()

    def rename_later(self, target):
        if self not in refused:
            refused.add(self)
            raise PermissionError(13, "The process cannot access the file because it is being used")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_later)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with atomic_folder(folder) as new:
        (new / "after").write_text("y")
    assert names(folder) == ["data", "data/after"]
    assert refused == {folder, folder.with_name("data.new")}


@pytest.mark.parametrize("refusals", [0, 2, 9])
def test_replacing_a_file_held_open_is_retried_a_few_times(tmp_path, monkeypatch, refusals):
    path, replace, attempts = tmp_path / "a.json", Path.replace, []

    def replace_later(new, target):
        attempts.append(new)
        if len(attempts) <= refusals:
            raise PermissionError(13, "The process cannot access the file because it is being used")
        return replace(new, target)

    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(Path, "replace", replace_later)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    if refusals == 9:
        with pytest.raises(PermissionError):
            write_atomically(path, "new")
    else:
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == ("old" if refusals == 9 else "new")


@pytest.mark.parametrize("read", [read_json, lambda path: read_json_lines(path)[0]])
def test_reading_a_file_that_is_being_replaced_is_retried(tmp_path, monkeypatch, read):
    path, read_bytes, attempts = tmp_path / "history.jsonl", Path.read_bytes, []

    def read_later(self):
        attempts.append(self)
        if len(attempts) < 3:
            raise PermissionError(13, "The process cannot access the file because it is being used")
        return read_bytes(self)

    path.write_text('{"step": 1}\n', encoding="utf-8")
    monkeypatch.setattr(Path, "read_bytes", read_later)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert read(path) == {"step": 1}


def test_free_space_is_read_at_the_nearest_existing_folder(tmp_path, monkeypatch):
    assert free_bytes(tmp_path / "not" / "yet") > 0
    asked = []
    monkeypatch.setattr("helpers.files.shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=1))
    for folder in (tmp_path / "not" / "yet", tmp_path, Path("not/yet")):
        free_bytes(folder)
    assert asked == [tmp_path, tmp_path, Path()], "a folder may itself be another disk"


def test_a_folder_on_a_missing_drive_is_named(tmp_path, monkeypatch):
    def disk_usage(path):  # as on Windows for a drive that was unplugged: the error has no path
        raise FileNotFoundError(errno.ENOENT, "The system cannot find the path specified")

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr("helpers.files.shutil.disk_usage", disk_usage)
    with pytest.raises(FileNotFoundError) as error:
        free_bytes(tmp_path / "not" / "yet")
    assert explain_os_error(error.value).startswith(f"{tmp_path / 'not' / 'yet'} cannot be used (The system")


@pytest.mark.parametrize("before", [None, "old"])
def test_an_environment_variable_is_restored_even_after_an_error(monkeypatch, before):
    monkeypatch.delenv("COURSE_X", raising=False)
    if before:
        monkeypatch.setenv("COURSE_X", before)
    with pytest.raises(ZeroDivisionError), environment_variables({"COURSE_X": "new"}):
        assert os.environ["COURSE_X"] == "new"
        raise ZeroDivisionError
    assert os.environ.get("COURSE_X") == before

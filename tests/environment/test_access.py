"""Real access to this machine, and what it returns when something is missing."""

import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from helpers.environment.access import Access


def test_the_defaults_describe_this_machine():
    access = Access()
    assert (access.system, access.release) == (platform.system(), platform.release())
    assert access.python_version == sys.version_info[:3]
    assert (access.executable, access.prefix) == (sys.executable, sys.prefix)
    assert (access.project / "helpers" / "environment" / "access.py").is_file()


def test_environment_variables_are_current(monkeypatch):
    monkeypatch.setenv("DOCTOR_TEST", "now")
    assert Access().env["DOCTOR_TEST"] == "now"


def test_system_files_are_read_below_the_root(make_access):
    access = make_access({"/proc/version": "Linux 6"})
    assert access.text("/proc/version") == "Linux 6"
    assert access.text("/proc/none") == access.text("/proc") == ""
    assert access.exists("/proc/version")
    assert not access.exists("/proc/none")


def test_invalid_bytes_are_still_read(make_access, tmp_path):
    access = make_access({"/etc/os-release": ""})
    (tmp_path / "root/etc/os-release").write_bytes(b"ID=\xff\n")
    assert access.text("/etc/os-release") == "ID=�\n"


def test_names_are_sorted_and_empty_for_a_missing_folder(make_access):
    access = make_access({"/sys/b1": "", "/sys/b2": "", "/sys/a": ""})
    assert access.names("/sys", "b*") == ["b1", "b2"]
    assert access.names("/nowhere", "*") == []


@pytest.mark.skipif(os.name == "nt", reason="on Windows only some users can create links")
def test_a_dangling_symlink_exists(make_access, tmp_path):
    access = make_access()
    (tmp_path / "root" / "link").symlink_to("nowhere")
    assert access.exists("/link")


@pytest.mark.parametrize(
    ("system", "env", "home"),
    [
        ("Linux", {"HOME": "/h"}, Path("/h")),
        ("Windows", {"USERPROFILE": "/u", "HOME": "/h"}, Path("/u")),
        ("Linux", {}, Path("/of/user")),
        ("Linux", {"HOME": ""}, Path("/of/user")),
    ],
)
def test_home_is_read_from_the_platforms_own_variable(make_access, system, env, home):
    assert make_access(system=system, env=env, home_of_user=lambda: Path("/of/user")).home() == home


@pytest.mark.parametrize("error", [RuntimeError("Could not determine home directory."), KeyError("uid not found: 7")])
def test_home_is_none_for_a_user_without_one(make_access, error):
    def unknown_user():
        raise error

    assert make_access(env={}, home_of_user=unknown_user).home() is None


def test_version_of_returns_the_installed_version_or_none():
    import pydantic

    assert Access().version_of("pydantic") == pydantic.VERSION
    assert Access().version_of("no-such-distribution-anywhere") is None


def test_folders_on_the_same_disk_share_its_identifier(tmp_path):
    (tmp_path / "inside").mkdir()
    free, disk, writable = Access().space(tmp_path)
    assert free > 0
    assert writable
    assert Access().space(tmp_path / "inside")[1] == disk


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write to every folder")
def test_a_read_only_folder_is_reported(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert Access().space(tmp_path)[2] is False
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_memory_of_this_machine_is_plausible():
    total, available = Access().memory()
    assert 0 < available <= total


def test_kernel_folders_follow_jupyters_search_path(monkeypatch, tmp_path):
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "shared"))
    folders = Access().kernel_folders()
    assert folders[0] == tmp_path / "shared" / "kernels"
    assert Path(sys.prefix, "share", "jupyter", "kernels") in folders


def test_without_jupyter_there_are_no_kernel_folders(monkeypatch):
    monkeypatch.setitem(sys.modules, "jupyter_core.paths", None)
    assert Access().kernel_folders() == []


@pytest.mark.skipif(os.name != "posix", reason="the fake is a shell script")
@pytest.mark.parametrize(
    ("script", "release"),
    [
        ("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'", "12.4"),
        ("#!/bin/sh\necho banana; exit 3", "unknown"),
        ("#!/no/such/shell\n", "unknown"),
        (None, ""),
    ],
)
def test_nvcc_reports_its_release(tmp_path, monkeypatch, script, release):
    if script:
        (tmp_path / "nvcc").write_text(script)
        (tmp_path / "nvcc").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Access().nvcc() == release


@pytest.mark.parametrize("name", ["on_battery", "long_paths", "memory", "nvcc"])
def test_each_reader_returns_its_type_on_this_machine(name):
    kinds = {"on_battery": bool, "long_paths": bool, "memory": tuple, "nvcc": str}
    result = getattr(Access(), name)()
    assert isinstance(result, kinds[name]) or (result is None and kinds[name] is bool)

"""Reading a machine, from files below a root that replaces `/` and from simulated access."""

import dataclasses
import json
from pathlib import Path

import pytest

from helpers.display import GIB
from helpers.environment.access import Access
from helpers.environment.diagnosis import RULES, diagnosis_of
from helpers.environment.facts import GpuReading, Machine, Memory, Nvml, Torch, Unread
from helpers.environment.machine import platform_kind, read_machine, read_memory

GROUPS = [
    field.name for field in dataclasses.fields(Machine) if field.name not in ("quick", "env", "pid", "on_battery")
]
WSL_VERSION = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@1) (gcc 11) #1 SMP"


def broken(*_, **__):
    raise ZeroDivisionError("this door is stuck")


class TestPlatform:
    @pytest.mark.parametrize(
        ("files", "changes", "kind"),
        [
            ({}, {}, "Linux"),
            ({}, {"system": "Windows", "release": "11"}, "Windows"),
            ({}, {"system": "Darwin"}, "macOS"),
            ({}, {"system": "FreeBSD"}, "FreeBSD"),
            ({"/proc/version": WSL_VERSION}, {"release": "5.15.153.1-microsoft-standard-WSL2"}, "WSL2"),
            ({"/proc/version": WSL_VERSION}, {"release": "6.6.0-mine"}, "WSL2"),
            ({"/dev/dxg": "", "/proc/version": "Linux 6.6 (Microsoft@x)"}, {}, "WSL2"),  # a custom kernel
            ({"/proc/version": "Linux version 4.4.0-19041-Microsoft (gcc 5.4.0)"}, {}, "WSL1"),
            ({"/proc/version": "Linux version 4.4.0"}, {"release": "4.4.0-19041-Microsoft"}, "WSL1"),
            ({"/proc/version": "Linux version 6.8.0 (buildd@lcy02)"}, {}, "Linux"),
        ],
    )
    def test_the_kind_of_platform_is_read_from_the_kernel(self, make_access, files, changes, kind):
        access = make_access(files, **changes)
        assert platform_kind(access) == read_machine(access).platform.kind == kind

    def test_this_machine_has_a_known_platform(self):
        assert platform_kind(Access()) in ("Linux", "Windows", "WSL2", "WSL1", "macOS")

    @pytest.mark.parametrize(
        ("files", "env", "container"),
        [
            ({}, {}, ""),
            ({"/.dockerenv": ""}, {}, "/.dockerenv"),
            ({"/run/.containerenv": "engine=podman"}, {}, "/run/.containerenv"),
            ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "KUBERNETES_SERVICE_HOST"),
            ({}, {"container": "lxc"}, "container=lxc"),
        ],
    )
    def test_a_container_is_recognised_and_the_reason_is_kept(self, make_access, files, env, container):
        assert read_machine(make_access(files, env=env)).platform.container == container

    @pytest.mark.parametrize(
        ("vendor", "kind", "is_there"),
        [
            ("0x10de\n", "0x030000\n", True),
            ("0x10de\n", "0x030200\n", True),
            ("0x10de\n", "0x040300\n", False),  # the card's audio device
            ("0x1002\n", "0x030000\n", False),
            ("", "", False),
        ],
    )
    def test_a_card_is_seen_on_the_bus_without_a_driver(self, make_access, vendor, kind, is_there):
        folder = "/sys/bus/pci/devices/0000:01:00.0"
        access = make_access({f"{folder}/vendor": vendor, f"{folder}/class": kind})
        assert read_machine(access).platform.nvidia_on_bus is is_there

    @pytest.mark.parametrize(
        ("vendors", "others"),
        [
            (["0x10de"], ()),
            (["0x1002", "0x8086", "0x1002"], ("AMD", "Intel")),
            (["0x10de", "0x8086"], ("Intel",)),
            (["0x1a03"], ()),  # the display of a server's management controller
        ],
    )
    def test_graphics_of_other_vendors_are_named(self, make_access, vendors, others):
        folder = "/sys/bus/pci/devices/0000:0{}:00.0"
        files = {f"{folder.format(n)}/vendor": vendor for n, vendor in enumerate(vendors)}
        files |= {f"{folder.format(n)}/class": "0x030000\n" for n in range(len(vendors))}
        assert read_machine(make_access(files)).platform.other_graphics == others

    @pytest.mark.parametrize(("architecture", "others"), [("arm64", ("Apple",)), ("x86_64", ())])
    def test_apple_graphics_are_recognised_by_the_processor(self, make_access, architecture, others):
        machine = read_machine(make_access(system="Darwin", architecture=architecture))
        assert machine.platform.other_graphics == others

    def test_the_release_of_nvcc_is_read(self, make_access):
        assert read_machine(make_access(nvcc=lambda: "12.4")).platform.nvcc == "12.4"


class TestWsl:
    def read(self, make_access, files):
        return read_machine(make_access({"/proc/version": WSL_VERSION, **files})).wsl

    def test_it_is_none_outside_wsl2(self, make_access):
        assert read_machine(make_access({"/dev/dxg": ""})).wsl is None

    def test_everything_is_present(self, make_access):
        result = self.read(
            make_access, {"/dev/dxg": "", "/usr/lib/wsl/lib/libcuda.so.1": "", "/usr/lib/wsl/lib/nvidia-smi": ""}
        )
        assert (result.dxg, result.libcuda, result.nvidia, result.shadowing) == (True, True, True, ())

    def test_nothing_is_present(self, make_access):
        result = self.read(make_access, {})
        assert (result.dxg, result.libcuda, result.nvidia, result.shadowing) == (False, False, False, ())

    def test_a_linux_driver_is_named(self, make_access):
        result = self.read(
            make_access,
            {
                "/var/lib/dpkg/info/nvidia-driver-550.list": "",
                "/var/lib/dpkg/info/libnvidia-compute-550:amd64.list": "",
                "/var/lib/dpkg/info/libnvidia-container1.list": "",  # the container toolkit is allowed
                "/usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
            },
        )
        assert result.shadowing == (
            "nvidia-driver-550",
            "libnvidia-compute-550",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        )


class TestMemory:
    MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n"

    def read(self, make_access, limits=None):
        return read_memory(make_access({"/proc/meminfo": self.MEMINFO, **(limits or {})}))

    def test_it_is_read_from_meminfo(self, make_access):
        assert self.read(make_access) == Memory(16 * GIB, 8 * GIB)

    def test_a_limit_of_max_is_ignored(self, make_access):
        limits = {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": str(GIB)}
        assert self.read(make_access, limits) == Memory(16 * GIB, 8 * GIB)

    def test_a_container_limit_applies(self, make_access):
        limits = {"/sys/fs/cgroup/memory.max": f"{4 * GIB}\n", "/sys/fs/cgroup/memory.current": f"{GIB}\n"}
        assert self.read(make_access, limits) == Memory(4 * GIB, 3 * GIB)

    def test_reclaimable_file_cache_counts_as_available(self, make_access):
        limits = {
            "/sys/fs/cgroup/memory.max": str(4 * GIB),
            "/sys/fs/cgroup/memory.current": str(4 * GIB),
            "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {3 * GIB}\nactive_file 7\n",
        }
        assert self.read(make_access, limits) == Memory(4 * GIB, 3 * GIB)

    def test_cgroup_v1_limits_apply_too(self, make_access):
        limits = {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(6 * GIB),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
            "/sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
        }
        result = self.read(make_access, limits)
        assert result.total_bytes == 6 * GIB
        assert GIB < result.available_bytes <= 2 * GIB

    def test_the_huge_limit_of_cgroup_v1_means_no_limit(self, make_access):
        limits = {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
        }
        assert self.read(make_access, limits) == Memory(16 * GIB, 8 * GIB)

    def test_an_exceeded_limit_leaves_nothing_available(self, make_access):
        limits = {"/sys/fs/cgroup/memory.max": str(GIB), "/sys/fs/cgroup/memory.current": str(2 * GIB)}
        assert self.read(make_access, limits) == Memory(GIB, 0)

    def test_without_meminfo_the_operating_system_is_asked(self, make_access):
        assert read_memory(make_access({"/proc/meminfo": "banana"})) == Memory(16 * GIB, 12 * GIB)

    def test_this_machine_has_memory(self):
        result = read_memory()
        assert 0 < result.available_bytes <= result.total_bytes


class TestPython:
    def kernel(self, folder, argv):
        spec = folder / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(argv if isinstance(argv, str) else json.dumps({"argv": argv}))
        return spec

    def test_the_expected_environments_start_with_the_projects_own(self, make_access, tmp_path):
        (tmp_path / "project" / ".venv").mkdir(parents=True)
        env = {"VIRTUAL_ENV": "/v", "CONDA_PREFIX": "/c"}
        result = read_machine(make_access(env=env)).python
        assert result.expected == (str(tmp_path / "project" / ".venv"), "/v", "/c")
        assert (result.version, result.bits) == ((3, 12, 4), 64)

    def test_conda_is_recognised_by_its_folder(self, make_access, tmp_path):
        assert not read_machine(make_access()).python.is_conda
        (tmp_path / "venv" / "conda-meta").mkdir(parents=True)
        assert read_machine(make_access()).python.is_conda

    def test_a_missing_kernel_is_none(self, make_access):
        result = read_machine(make_access()).python
        assert (result.kernel, result.kernel_exists) == (None, True)

    def test_the_first_folder_with_a_python3_kernel_counts(self, make_access, tmp_path):
        access = make_access(kernel_folders=lambda: [tmp_path / "empty", tmp_path / "venv", tmp_path / "user"])
        self.kernel(tmp_path / "user", [str(tmp_path / "gone/python"), "-m"])
        python = read_machine(access).python
        assert (python.kernel, python.kernel_exists) == (str(tmp_path / "gone/python"), False)
        self.kernel(tmp_path / "venv", ["python", "-m"])
        python = read_machine(access).python
        assert (python.kernel, python.kernel_exists) == ("python", True)

    @pytest.mark.parametrize("content", ["{", "[]", '{"argv": []}', "{}", '{"argv": null}', "\x00"])
    def test_a_damaged_kernel_spec_is_reported_and_the_rest_of_python_is_read(self, make_access, tmp_path, content):
        spec = self.kernel(tmp_path, content)
        machine = read_machine(make_access(kernel_folders=lambda: [tmp_path]))
        assert machine.python.kernel == f"described by {spec}, which cannot be read"
        checks = diagnosis_of(machine)
        assert checks.check("python_version").status == "ok"
        assert checks.check("env_kernel_match").status == "fail"
        assert str(spec) in checks.check("env_kernel_match").reading


class TestProcess:
    CARDS = tuple(GpuReading(index, f"card {index}", f"GPU-{index}", total_bytes=12 * GIB) for index in range(4))

    @pytest.mark.parametrize(
        ("value", "status", "words"),
        [
            (None, "ok", "not set"),
            ("", "fail", "hides every card"),
            ("-1", "fail", "hides every card"),
            ("99", "fail", "hides every card"),
            ("banana", "fail", "hides every card"),
            ("0,0", "fail", "hides every card"),
            ("2", "ok", "'2'"),
            ("1,99", "warn", "only the first 1"),
        ],
    )
    def test_cuda_visible_devices_is_read_and_checked(self, make_access, value, status, words):
        env = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
        torch = Torch("ok", version="2.13.0+cu130", cuda="13.0", available=status != "fail", product="ok")
        nvml = Nvml("ok", driver="580.65.06", cuda=13000, cards=self.CARDS)
        machine = read_machine(make_access(env=env, read_nvml=lambda: nvml, read_torch=lambda **_: torch))
        assert machine.env == env
        check = diagnosis_of(machine).check("visible_devices")
        assert check.status == status
        assert words in check.reading


class TestStorage:
    def test_each_place_is_read_with_the_disk_it_will_be_on(self, make_access, tmp_path):
        queried = []
        env = {"HOME": str(tmp_path / "me"), "COURSE_RUNS": str(tmp_path / "a/b/c")}
        storage = read_machine(
            make_access(env=env, space=lambda folder: queried.append(folder) or (7, "d", True))
        ).storage
        assert [(place.role, place.path) for place in storage.places] == [
            ("runs", str(tmp_path / "a/b/c")),
            ("cache", str(tmp_path / "me/.cache/huggingface/hub")),
        ]
        assert queried == [tmp_path, tmp_path / "me"]

    @pytest.mark.parametrize(
        ("env", "cache"),
        [
            ({"HF_HOME": "/hf"}, "/hf/hub"),
            ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
            ({"HF_HOME": "~/hf"}, "hf/hub"),
        ],
    )
    def test_the_cache_can_be_moved(self, make_access, monkeypatch, tmp_path, env, cache):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        places = {place.role: place.path for place in read_machine(make_access(env=env)).storage.places}
        home = Path() if cache.startswith("/") else tmp_path  # joined, Windows would put its drive before the slash
        assert Path(places["cache"]) == home / cache

    def test_without_a_home_there_is_no_cache_and_a_warning_says_so(self, make_access):
        def unknown_user():
            raise RuntimeError("Could not determine home directory.")

        machine = read_machine(make_access(env={}, home_of_user=unknown_user))
        assert [place.role for place in machine.storage.places] == ["runs"]
        check = diagnosis_of(machine).check("paths")
        assert (check.status, "no home folder" in check.reading) == ("warn", True)

    def test_a_read_only_disk_is_reported(self, make_access):
        machine = read_machine(make_access(space=lambda folder: (100 * GIB, "disk", False)))
        assert [place.writable for place in machine.storage.places] == [False] * 2
        check = diagnosis_of(machine).check("disk_free")
        assert (check.status, "cannot be written" in check.reading) == ("fail", True)

    def test_a_folder_inside_a_locked_one_is_not_writable(self, make_access, tmp_path, monkeypatch):
        locked = tmp_path / "locked"
        locked.mkdir()
        real = Path.exists

        def exists(path, **options):
            if locked in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, **options)

        monkeypatch.setattr(Path, "exists", exists)
        env = {"COURSE_RUNS": str(locked / "inner/runs")}
        access = make_access(env=env, space=lambda folder: (GIB, "disk", folder != locked))
        assert [place.writable for place in read_machine(access).storage.places] == [False, True]

    def test_a_file_in_place_of_the_folder_is_not_writable(self, make_access, tmp_path):
        (tmp_path / "runs").touch()
        access = make_access(env={"COURSE_RUNS": str(tmp_path / "runs")}, space=lambda folder: (GIB, "disk", True))
        assert [place.writable for place in read_machine(access).storage.places] == [False, True]

    def test_a_missing_drive_is_not_writable(self, make_access, monkeypatch):
        monkeypatch.setattr("helpers.environment.machine.os.path.exists", lambda path: False)
        places = read_machine(make_access()).storage.places
        assert {(place.free_bytes, place.writable) for place in places} == {(0, False)}


class TestPower:
    BATTERY = "/sys/class/power_supply/BAT0"

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({}, False),
            ({f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": "Discharging\n"}, True),
            ({f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": "Charging\n"}, False),
            (
                {
                    f"{BATTERY}/type": "Battery\n",
                    f"{BATTERY}/status": "Discharging\n",
                    f"{BATTERY}/scope": "Device\n",
                },
                False,
            ),
            ({"/sys/class/power_supply/AC/type": "Mains\n", "/sys/class/power_supply/AC/online": "1\n"}, False),
        ],
    )
    def test_a_battery_in_use_is_reported_and_a_mouses_battery_is_not(self, make_access, files, expected):
        assert read_machine(make_access(files)).on_battery is bool(expected)

    @pytest.mark.parametrize("expected", [True, False, None])
    def test_other_systems_are_asked_directly(self, make_access, expected):
        assert read_machine(make_access(system="Windows", on_battery=lambda: expected)).on_battery is bool(expected)


class TestUnreadable:
    def stuck(self, make_access, monkeypatch, group):
        """Return access to a WSL2 machine with one group that cannot be read."""
        door = {
            "python": {"kernel_folders": broken},
            "platform": {"nvcc": broken},
            "packages": {"version_of": broken},
            "torch": {"read_torch": broken},
            "nvml": {"read_nvml": broken},
            "memory": {"memory": broken},
            "storage": {"space": broken},
        }.get(group, {})
        access = make_access({"/proc/version": WSL_VERSION}, **door)
        if group == "files":
            monkeypatch.setattr("helpers.environment.machine.read_model_files", broken)
        if group == "wsl":
            real = type(access).names
            monkeypatch.setattr(
                type(access),
                "names",
                lambda self, where, what: broken() if where == "/var/lib/dpkg/info" else real(self, where, what),
            )
        return access

    @pytest.mark.parametrize("group", GROUPS)
    def test_a_reader_that_raises_affects_only_its_own_group(self, make_access, monkeypatch, group):
        machine = read_machine(self.stuck(make_access, monkeypatch, group))
        unread = {name for name in GROUPS if isinstance(getattr(machine, name), Unread)}
        assert unread == {group}
        with pytest.raises(RuntimeError, match="ZeroDivisionError: this door is stuck"):
            _ = getattr(machine, group).anything

    @pytest.mark.parametrize("group", GROUPS)
    def test_the_diagnosis_is_still_complete(self, make_access, monkeypatch, group):
        result = diagnosis_of(read_machine(self.stuck(make_access, monkeypatch, group)))
        assert len({check.id for check in result.checks}) == len(RULES)
        assert not [check for check in result.checks if "check itself broke" in check.reading]
        assert any(check.status == "unknown" and "this door is stuck" in check.reading for check in result.checks)
        json.dumps(result.to_dict())
        assert result.table()
        assert result._repr_html_()
        assert result.chain()
        assert result.equivalents()

    def test_an_entirely_unreadable_machine_still_gets_a_verdict(self):
        nothing = Machine(**{name: Unread("no luck") for name in GROUPS}, env={}, pid=1)
        result = diagnosis_of(nothing)
        assert len(result.checks) == len(RULES)
        assert {check.status for check in result.checks} <= {"unknown", "ok"}
        assert result.verdict
        assert result.table()
        json.dumps(result.to_dict())


def test_torch_gets_a_shorter_time_limit_after_nvml_hung(make_access):
    limits = []

    def read_torch(timeout_seconds):
        limits.append(timeout_seconds)
        return Torch("absent")

    read_machine(make_access(read_torch=read_torch))
    read_machine(make_access(read_torch=read_torch, read_nvml=lambda: Nvml("hung", "no answer within 10 s")))
    assert limits[1] < limits[0]


def test_nvml_is_read_before_torch_uses_gpu_memory(make_access):
    order = []
    read_machine(
        make_access(
            read_torch=lambda **_: order.append("torch") or Torch("absent"),
            read_nvml=lambda: order.append("nvml") or Nvml("absent"),
        )
    )
    assert order == ["nvml", "torch"]


def test_a_quick_read_does_not_ask_torch(make_access):
    machine = read_machine(make_access(read_torch=broken), quick=True)
    assert (machine.torch.state, machine.quick) == ("quick", True)

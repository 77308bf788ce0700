"""How a machine is read: from files below a root that stands for `/`, and from doors that stand for the rest."""

import dataclasses
import json
import types
from pathlib import Path

import pytest

from helpers.display import GIB
from helpers.environment.facts import GpuReading, Machine, Memory, Nvml, Torch, Unread
from helpers.environment.machine import platform_kind, read_machine, read_memory, runs_folder
from helpers.environment.report import diagnosis_of

GROUPS = [field.name for field in dataclasses.fields(Machine) if field.name != "quick"]
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
            ({"/dev/dxg": "", "/proc/version": "Linux 6.6 (Microsoft@x)"}, {}, "WSL2"),  # a kernel of one's own
            ({"/proc/version": "Linux version 4.4.0-19041-Microsoft (gcc 5.4.0)"}, {}, "WSL1"),
            ({"/proc/version": "Linux version 4.4.0"}, {"release": "4.4.0-19041-Microsoft"}, "WSL1"),
            ({"/proc/version": "Linux version 6.8.0 (buildd@lcy02)"}, {}, "Linux"),
        ],
    )
    def test_the_kind_is_told_from_the_kernel(self, doors, files, changes, kind):
        sources = doors(files, **changes)
        assert platform_kind(sources) == read_machine(sources).platform.kind == kind

    def test_this_machine_has_a_kind(self):
        assert platform_kind() in ("Linux", "Windows", "WSL2", "WSL1", "macOS")

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
    def test_a_container_is_told_with_what_gives_it_away(self, doors, files, env, container):
        assert read_machine(doors(files, env=env)).platform.container == container

    @pytest.mark.parametrize(
        ("vendor", "kind", "is_there"),
        [
            ("0x10de\n", "0x030000\n", True),
            ("0x10de\n", "0x030200\n", True),
            ("0x10de\n", "0x040300\n", False),  # the card's sound
            ("0x1002\n", "0x030000\n", False),
            ("", "", False),
        ],
    )
    def test_a_card_is_seen_on_the_bus_without_a_driver(self, doors, vendor, kind, is_there):
        folder = "/sys/bus/pci/devices/0000:01:00.0"
        sources = doors({f"{folder}/vendor": vendor, f"{folder}/class": kind})
        assert read_machine(sources).platform.nvidia_on_bus is is_there

    def test_the_distribution_is_told_with_what_it_is_like(self, doors):
        sources = doors({"/etc/os-release": 'NAME="Mint"\nID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID="22"\n'})
        assert read_machine(sources).platform.distribution == "linuxmint ubuntu debian"

    def test_a_compiler_on_the_path_is_information(self, doors):
        assert read_machine(doors(nvcc=lambda: "12.4")).platform.nvcc == "12.4"


class TestWsl:
    def read(self, doors, files):
        return read_machine(doors({"/proc/version": WSL_VERSION, **files})).wsl

    def test_elsewhere_it_is_not_looked_at(self, doors):
        assert read_machine(doors({"/dev/dxg": ""})).wsl is None

    def test_all_is_there(self, doors):
        found = self.read(
            doors, {"/dev/dxg": "", "/usr/lib/wsl/lib/libcuda.so.1": "", "/usr/lib/wsl/lib/nvidia-smi": ""}
        )
        assert (found.dxg, found.libcuda, found.nvidia, found.shadowing) == (True, True, True, ())

    def test_nothing_is_there(self, doors):
        found = self.read(doors, {})
        assert (found.dxg, found.libcuda, found.nvidia, found.shadowing) == (False, False, False, ())

    def test_a_linux_driver_is_named(self, doors):
        found = self.read(
            doors,
            {
                "/var/lib/dpkg/info/nvidia-driver-550.list": "",
                "/var/lib/dpkg/info/libnvidia-compute-550:amd64.list": "",
                "/var/lib/dpkg/info/libnvidia-container1.list": "",  # the container toolkit is welcome
                "/usr/lib/x86_64-linux-gnu/libcuda.so.1": "",
            },
        )
        assert found.shadowing == (
            "nvidia-driver-550",
            "libnvidia-compute-550",
            "/usr/lib/x86_64-linux-gnu/libcuda.so.1",
        )


class TestMemory:
    MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n"

    def read(self, doors, limits=None):
        return read_memory(doors({"/proc/meminfo": self.MEMINFO, **(limits or {})}))

    def test_it_is_what_the_system_says(self, doors):
        assert self.read(doors) == Memory(16 * GIB, 8 * GIB)

    def test_no_limit_is_no_limit(self, doors):
        limits = {"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": str(GIB)}
        assert self.read(doors, limits) == Memory(16 * GIB, 8 * GIB)

    def test_a_containers_limit_counts(self, doors):
        limits = {"/sys/fs/cgroup/memory.max": f"{4 * GIB}\n", "/sys/fs/cgroup/memory.current": f"{GIB}\n"}
        assert self.read(doors, limits) == Memory(4 * GIB, 3 * GIB)

    def test_the_cache_of_read_files_makes_room_when_asked(self, doors):
        limits = {
            "/sys/fs/cgroup/memory.max": str(4 * GIB),
            "/sys/fs/cgroup/memory.current": str(4 * GIB),
            "/sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {3 * GIB}\nactive_file 7\n",
        }
        assert self.read(doors, limits) == Memory(4 * GIB, 3 * GIB)

    def test_the_older_control_groups_count_too(self, doors):
        limits = {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(6 * GIB),
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
            "/sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB}\n",
        }
        found = self.read(doors, limits)
        assert found.total_bytes == 6 * GIB
        assert GIB < found.available_bytes <= 2 * GIB

    def test_the_older_control_groups_write_no_limit_as_a_huge_one(self, doors):
        limits = {
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(5 * GIB),
        }
        assert self.read(doors, limits) == Memory(16 * GIB, 8 * GIB)

    def test_a_limit_that_is_exceeded_leaves_nothing(self, doors):
        limits = {"/sys/fs/cgroup/memory.max": str(GIB), "/sys/fs/cgroup/memory.current": str(2 * GIB)}
        assert self.read(doors, limits) == Memory(GIB, 0)

    def test_without_the_file_the_system_is_asked_in_its_own_way(self, doors):
        assert read_memory(doors({"/proc/meminfo": "banana"})) == Memory(16 * GIB, 12 * GIB)

    def test_this_machine_has_memory(self):
        found = read_memory()
        assert 0 < found.available_bytes <= found.total_bytes


class TestPython:
    def kernel(self, folder, argv):
        spec = folder / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(argv if isinstance(argv, str) else json.dumps({"argv": argv}))
        return spec

    def test_the_environments_that_were_meant_are_told_the_projects_own_first(self, doors, tmp_path):
        (tmp_path / "project" / ".venv").mkdir(parents=True)
        env = {"VIRTUAL_ENV": "/v", "CONDA_PREFIX": "/c"}
        found = read_machine(doors(env=env)).python
        assert found.expected == (str(tmp_path / "project" / ".venv"), "/v", "/c")
        assert (found.version, found.bits, found.start_method) == ((3, 12, 4), 64, "fork")

    def test_conda_is_known_by_its_folder(self, doors, tmp_path):
        assert not read_machine(doors()).python.is_conda
        (tmp_path / "venv" / "conda-meta").mkdir(parents=True)
        assert read_machine(doors()).python.is_conda

    def test_no_kernel_is_none(self, doors):
        found = read_machine(doors()).python
        assert (found.kernel, found.kernel_exists) == (None, True)

    def test_the_first_folder_that_has_a_python3_kernel_counts(self, doors, tmp_path):
        sources = doors(kernel_folders=lambda: [tmp_path / "empty", tmp_path / "venv", tmp_path / "user"])
        self.kernel(tmp_path / "user", [str(tmp_path / "gone/python"), "-m"])
        python = read_machine(sources).python
        assert (python.kernel, python.kernel_exists) == (str(tmp_path / "gone/python"), False)
        self.kernel(tmp_path / "venv", ["python", "-m"])
        python = read_machine(sources).python
        assert (python.kernel, python.kernel_exists) == ("python", True)

    @pytest.mark.parametrize("content", ["{", "[]", '{"argv": []}', "{}", '{"argv": null}', "\x00"])
    def test_a_damaged_kernel_is_reported_and_the_rest_of_python_is_read(self, doors, tmp_path, content):
        spec = self.kernel(tmp_path, content)
        machine = read_machine(doors(kernel_folders=lambda: [tmp_path]))
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
    def test_the_variable_that_hides_cards_is_read(self, doors, value, status, words):
        env = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
        torch = Torch("ok", version="2.13.0+cu130", cuda="13.0", available=status != "fail", product="ok")
        nvml = Nvml("ok", driver="580.65.06", cuda=13000, cards=self.CARDS)
        machine = read_machine(doors(env=env, read_nvml=lambda: nvml, read_torch=lambda **_: torch))
        assert machine.process.env == env
        check = diagnosis_of(machine).check("visible_devices")
        assert check.status == status
        assert words in check.reading

    def test_a_variable_set_after_the_start_is_told(self, doors):
        files = {"/proc/self/environ": "HOME=x\0PYTORCH_ALLOC_CONF=a=b\0"}
        env = {"CUDA_VISIBLE_DEVICES": "0", "PYTORCH_ALLOC_CONF": "a=b"}
        assert read_machine(doors(files, env=env)).process.changed == {"CUDA_VISIBLE_DEVICES"}
        assert read_machine(doors({"/proc/self/environ": ""}, env=env)).process.changed == frozenset()

    @pytest.mark.parametrize(("initialised", "told"), [(lambda: True, True), (lambda: False, False)])
    def test_a_torch_that_is_loaded_is_asked_whether_it_uses_cuda(self, doors, initialised, told):
        torch = types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=initialised))
        assert read_machine(doors(modules={"torch": torch})).process.cuda_in_use is told

    def test_a_torch_that_is_half_loaded_uses_nothing(self, doors):
        assert read_machine(doors(modules={"torch": types.SimpleNamespace()})).process.cuda_in_use is False

    def test_the_wish_that_accelerate_keeps_is_read(self, doors, tmp_path):
        path = tmp_path / "me/.cache/huggingface/accelerate/default_config.yaml"
        path.parent.mkdir(parents=True)
        path.write_text("mixed_precision: 'FP16'\nuse_cpu: false\ndeepspeed:\n  inner: 1\n# comment: 1\n")
        found = read_machine(doors()).process.accelerate
        assert found == {"path": str(path), "mixed_precision": "fp16", "use_cpu": "false", "deepspeed": ""}

    def test_no_wish_is_none(self, doors):
        assert read_machine(doors()).process.accelerate == {}


class TestStorage:
    def test_the_runs_folder_is_that_of_the_settings(self, monkeypatch, tmp_path):
        from helpers import settings

        for value in ("", "elsewhere", str(tmp_path)):
            env = {"COURSE_RUNS": value}
            monkeypatch.setenv("COURSE_RUNS", value)
            assert runs_folder(env, settings.NOTEBOOKS.parent) == settings.runs_folder()

    def test_the_places_are_told_with_the_disk_that_will_hold_them(self, doors, tmp_path):
        asked = []
        env = {"HOME": str(tmp_path / "me"), "TMPDIR": str(tmp_path), "COURSE_RUNS": str(tmp_path / "a/b/c")}
        storage = read_machine(doors(env=env, space=lambda folder: asked.append(folder) or (7, "d", True))).storage
        assert [(place.role, place.path) for place in storage.places] == [
            ("runs", str(tmp_path / "a/b/c")),
            ("cache", str(tmp_path / "me/.cache/huggingface")),
            ("temp", str(tmp_path)),
        ]
        assert asked == [tmp_path, tmp_path / "me", tmp_path]
        assert storage.has_home

    @pytest.mark.parametrize(
        ("env", "cache"),
        [({"HF_HOME": "/hf"}, "/hf"), ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface"), ({"HF_HOME": "~/hf"}, "hf")],
    )
    def test_the_cache_may_be_moved(self, doors, monkeypatch, tmp_path, env, cache):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        places = {place.role: place.path for place in read_machine(doors(env=env)).storage.places}
        assert Path(places["cache"]) == tmp_path / cache

    def test_without_a_home_there_is_no_cache_and_the_diagnosis_comes_out(self, doors):
        def unknown_user():
            raise RuntimeError("Could not determine home directory.")

        machine = read_machine(doors(env={}, home_of_user=unknown_user))
        assert [place.role for place in machine.storage.places] == ["runs", "temp"]
        assert not machine.storage.has_home
        check = diagnosis_of(machine).check("paths")
        assert (check.status, "no home folder" in check.reading) == ("warn", True)

    def test_a_read_only_disk_is_told(self, doors):
        machine = read_machine(doors(space=lambda folder: (100 * GIB, "disk", False)))
        assert [place.writable for place in machine.storage.places] == [False] * 3
        check = diagnosis_of(machine).check("disk_free")
        assert (check.status, "cannot be written" in check.reading) == ("fail", True)

    def test_a_folder_behind_a_locked_door_is_judged_by_the_door(self, doors, tmp_path, monkeypatch):
        locked = tmp_path / "locked"
        locked.mkdir()
        real = Path.exists

        def exists(path, **options):
            if locked in path.parents:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, **options)

        monkeypatch.setattr(Path, "exists", exists)
        env = {"COURSE_RUNS": str(locked / "inner/runs")}
        sources = doors(env=env, space=lambda folder: (GIB, "disk", folder != locked))
        assert [place.writable for place in read_machine(sources).storage.places] == [False, True, True]

    def test_a_drive_that_is_not_there_cannot_be_written(self, doors, monkeypatch):
        monkeypatch.setattr("helpers.environment.machine.os.path.exists", lambda path: False)
        places = read_machine(doors()).storage.places
        assert {(place.free_bytes, place.writable) for place in places} == {(0, False)}


class TestPower:
    BATTERY = "/sys/class/power_supply/BAT0"

    @pytest.mark.parametrize(
        ("files", "told"),
        [
            ({}, None),
            ({f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": "Discharging\n"}, True),
            ({f"{BATTERY}/type": "Battery\n", f"{BATTERY}/status": "Charging\n"}, False),
            (
                {
                    f"{BATTERY}/type": "Battery\n",
                    f"{BATTERY}/status": "Discharging\n",
                    f"{BATTERY}/scope": "Device\n",
                },
                None,
            ),
            ({"/sys/class/power_supply/AC/type": "Mains\n", "/sys/class/power_supply/AC/online": "1\n"}, None),
        ],
    )
    def test_a_battery_in_use_is_told_and_a_mouses_is_not(self, doors, files, told):
        assert read_machine(doors(files)).power.on_battery is told

    @pytest.mark.parametrize("told", [True, False, None])
    def test_elsewhere_the_system_is_asked(self, doors, told):
        assert read_machine(doors(system="Windows", on_battery=lambda: told)).power.on_battery is told


class TestWhatCannotBeRead:
    def stuck(self, doors, monkeypatch, group):
        """Return the doors of a WSL2 machine one of whose groups cannot be read."""
        door = {
            "python": {"start_method": broken},
            "platform": {"nvcc": broken},
            "packages": {"version_of": broken},
            "torch": {"read_torch": broken},
            "nvml": {"read_nvml": broken},
            "process": {"modules": {"torch": types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=broken))}},
            "memory": {"memory": broken},
            "storage": {"space": broken},
        }.get(group, {})
        sources = doors({"/proc/version": WSL_VERSION}, **door)
        if group == "files":
            monkeypatch.setattr("helpers.environment.machine.read_model_files", broken)
        if group in ("power", "wsl"):
            folder = {"power": "/sys/class/power_supply", "wsl": "/var/lib/dpkg/info"}[group]
            real = type(sources).names
            monkeypatch.setattr(
                type(sources),
                "names",
                lambda self, where, what: broken() if where == folder else real(self, where, what),
            )
        return sources

    @pytest.mark.parametrize("group", GROUPS)
    def test_a_reader_that_raises_costs_its_own_group_only(self, doors, monkeypatch, group):
        machine = read_machine(self.stuck(doors, monkeypatch, group))
        unread = {name for name in GROUPS if isinstance(getattr(machine, name), Unread)}
        assert unread == {group}
        with pytest.raises(RuntimeError, match="ZeroDivisionError: this door is stuck"):
            _ = getattr(machine, group).anything

    @pytest.mark.parametrize("group", GROUPS)
    def test_the_diagnosis_comes_out_all_the_same(self, doors, monkeypatch, group):
        found = diagnosis_of(read_machine(self.stuck(doors, monkeypatch, group)))
        assert len({check.id for check in found.checks}) == 25
        assert not [check for check in found.checks if "check itself broke" in check.reading]
        assert any(check.status == "unknown" and "this door is stuck" in check.reading for check in found.checks)
        json.dumps(found.to_dict())
        assert found.table()
        assert found._repr_html_()
        assert found.chain()
        assert found.equivalents()

    def test_nothing_at_all_can_be_read_and_still_there_is_a_verdict(self):
        nothing = Machine(**{name: Unread("no luck") for name in GROUPS})
        found = diagnosis_of(nothing)
        assert len(found.checks) == 25
        assert {check.status for check in found.checks} <= {"unknown", "ok"}
        assert found.verdict
        assert found.table()
        json.dumps(found.to_dict())


def test_after_an_nvml_that_hung_torch_is_waited_for_less_long(doors):
    limits = []

    def read_torch(timeout_seconds):
        limits.append(timeout_seconds)
        return Torch("absent")

    read_machine(doors(read_torch=read_torch))
    read_machine(doors(read_torch=read_torch, read_nvml=lambda: Nvml("hung", "no answer within 10 s")))
    assert limits[1] < limits[0]


def test_the_cards_are_asked_before_torch_takes_memory_of_one(doors):
    order = []
    read_machine(
        doors(
            read_torch=lambda **_: order.append("torch") or Torch("absent"),
            read_nvml=lambda: order.append("nvml") or Nvml("absent"),
        )
    )
    assert order == ["nvml", "torch"]


def test_a_quick_look_leaves_torch_alone(doors):
    machine = read_machine(doors(read_torch=broken), quick=True)
    assert (machine.torch.state, machine.quick) == ("quick", True)

"""The failures of the environment, E1 to E24: driver, wheel, WSL2, Windows, memory of the card, packages."""

from helpers.environment import fixes
from helpers.environment.facts import Machine
from helpers.environment.wheels import python_command
from helpers.troubleshooting.log_numbers import named_holder, others_hold_memory, slows_down, small_card
from helpers.troubleshooting.sign import Sign

_COURSE = (
    "torch|transformers|datasets|accelerate|tokenizers|safetensors|huggingface_hub|pydantic|click|papermill|psutil|"
    "nbformat|nbclient|matplotlib|numpy|pyarrow|yaml|filelock|helpers"
)


def _kernel(machine: Machine) -> str:
    return f"{fixes.install_project(machine)} In a notebook choose this Python's kernel, and type %pip, never !pip."


def _short_cache(machine: Machine) -> str:
    if machine.platform.kind == "Windows":
        return (
            "Set HF_HOME to a short folder such as C:\\hf, and switch on long paths: "
            "Set-ItemProperty HKLM:\\SYSTEM\\CurrentControlSet\\Control\\FileSystem LongPathsEnabled 1 (as "
            f"administrator); then {fixes.RESTART}. The warning about symlinks alone is harmless."
        )
    return "On that Windows machine set HF_HOME to a short folder such as C:\\hf and switch on long paths."


def _drop_allocator_options(machine: Machine) -> str:
    return fixes.unset(machine, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


ENVIRONMENT = (
    Sign(
        "E1",
        "PyTorch is built without CUDA",
        "The installed wheel is the CPU one: pip's usual one on Windows, or taken from a CPU index.",
        lambda machine: (
            f"{fixes.install_wheel(machine)} Without a card: run the course on the CPU, "
            "and write device() of helpers.model in place of 'cuda'."
        ),
        error=(r"Torch not compiled with CUDA enabled", r"not linked with support for cuda devices"),
        log=(r"torch\S* *\S*\d\+cpu\b.*cuda.*(?:None|False)", r"Torch not compiled with CUDA enabled"),
        source="pytorch#131731",
    ),
    Sign(
        "E2",
        "the driver is older than the wheel's CUDA",
        "A CUDA 13 wheel needs driver 580 or newer, a CUDA 12 wheel 525.",
        lambda machine: f"{fixes.update_driver(machine)} Or take the older wheel: {fixes.install_wheel(machine)}",
        error=(r"driver on your system is too old", r"CUDA driver version is insufficient"),
        log=(r"driver on your system is too old", r"CUDA driver version is insufficient"),
        source="pytorch#162531",
    ),
    Sign(
        "E3",
        "another CUDA toolkit is installed than the wheel names",
        "The wheel brings its own CUDA; nvcc matters only to those who compile extensions.",
        "Nothing is to be mended: the toolkit and the wheel need not agree.",
        error=(r"detected CUDA version \([\d.]+\) mismatches the version that was used to compile",),
        log=(r"Cuda compilation tools, release \d+",),
        is_harmless=True,
        source="pytorch#34481",
    ),
    Sign(
        "E4",
        "the driver was updated under a running system",
        "The driver's library is new and the loaded kernel module is old.",
        fixes.reboot,
        error=(r"Driver/library version mismatch", r"LibRmVersionMismatch"),
        log=(r"Driver/library version mismatch",),
        source="ubuntu-packaging-nvidia-driver#3",
    ),
    Sign(
        "E5",
        "CUDA did not wake after sleep",
        "After a suspend the driver's memory module is in a bad state.",
        fixes.reload_uvm,
        error=(r"CUDA unknown error",),
        log=(r"CUDA unknown error|Setting the available devices to be zero",),
        unless=r"too old",
        source="pytorch#88639",
    ),
    Sign(
        "E6",
        "the card is hidden by CUDA_VISIBLE_DEVICES",
        "The variable is empty, -1, or names a card there is none of; or it was changed after the first use of CUDA.",
        lambda machine: fixes.unset(machine, "CUDA_VISIBLE_DEVICES"),
        error=(r"No CUDA GPUs are available", r"no CUDA-capable device is detected", r"invalid device ordinal"),
        log=(r"CUDA_VISIBLE_DEVICES *= *['\"]?(?:-1|['\"]|$)",),
        source="pytorch#60600",
    ),
    Sign(
        "E7",
        "WSL2 does not find, or shadows, the driver's libcuda",
        "The driver belongs on Windows alone; a Linux driver inside the distribution hides it.",
        fixes.purge_linux_driver,
        error=(r"libcuda\.so(?:\.1)?: cannot open shared object", r"Found no NVIDIA driver on your system"),
        log=(
            r"libcuda\.so\S* (?:not found|is not a symbolic link)",
            r"/usr/lib/wsl/lib/libcuda",
            r"Found no NVIDIA driver on your system",
        ),
        source="NVIDIA's guide to WSL; microsoft/WSL#9092",
    ),
    Sign(
        "E8",
        "NVML crashes or stays silent in WSL2",
        "WSL2 passes on only part of what the driver can tell; nvidia-smi may crash there.",
        "Harmless for training: what is not told is unknown. Run nvidia-smi on Windows instead, and "
        "`python -m helpers doctor` here, which asks in a process of its own.",
        error=(r"NVMLError_NotSupported",),
        log=(r"nvidia-smi.*(?:segmentation fault|core dumped)", r"libnvidia-ml.*segfault|segfault.*libnvidia-ml"),
        is_harmless=True,
        source="microsoft/WSL#11277",
    ),
    Sign(
        "E9",
        "WSL2 ran out of main memory",
        "WSL2 gets about half of the computer's memory, and its kernel kills what takes more.",
        fixes.more_memory,
        log=(r"(?:microsoft|wsl).*(?:oom-kill|out of memory: killed process)", r"\b(?:WSL2?|microsoft)\b.*\bKilled\b"),
        refines="T20",
        source="microsoft/WSL#7851",
    ),
    Sign(
        "E10",
        "pinned memory cannot be had (WSL2)",
        "Page-locked memory is scarce in WSL2; the card itself has room.",
        "dataloader_pin_memory=False, dataloader_num_workers=0 (the course's own runs pin nothing on a CPU).",
        error=(r"pin(?:ned)?[_ ]?memory.*out of memory|out of memory.*pin(?:ned)?[_ ]?memory|cudaHostAlloc",),
        log=(r"cudaHostAlloc|pin_memory\(\).*out of memory",),
        refines="T1",
        source="microsoft/WSL#8447",
    ),
    Sign(
        "E11",
        "steps suddenly crawl: the card spills into main memory",
        "Newer Windows drivers move what does not fit into main memory: no error, ten times the time.",
        lambda machine: (
            "A smaller batch. On Windows: NVIDIA Control Panel, Manage 3D settings, Program Settings, "
            f"add {machine.python.executable}, CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback; "
            f"then {fixes.RESTART}. Where the card did not fill up: look at its heat and at other programs."
        ),
        numbers=slows_down,
        source="NVIDIA support 5490; ostris/ai-toolkit#794",
    ),
    Sign(
        "E12",
        "other programs hold memory of the card",
        "Desktop, browser, a second monitor or another notebook take their part first: what is free counts.",
        "Close browsers and games, put the monitor on the other graphics port, and plan by what is free: "
        "`python -m helpers doctor` names who holds memory.",
        numbers=others_hold_memory,
        refines="T1",
        source="ComfyUI_frontend#3272",
    ),
    Sign(
        "E13",
        "another process holds the card",
        "The kernel of another notebook keeps its memory until it is shut down.",
        lambda machine: (
            "Shut that kernel in JupyterLab's Running tab, or: "
            + ("Stop-Process" if machine.platform.kind == "Windows" else "kill")
            + " and the number that is quoted."
        ),
        error=(r"all CUDA-capable devices are busy or unavailable",),
        numbers=named_holder,
        refines="T1",
        source="nvitop#55",
    ),
    Sign(
        "E14",
        "a tool says that sm_89 is not supported",
        "A false alarm: code for sm_80 or sm_86 runs on every card of the same major number.",
        "Nothing is to be mended if a product on the card works: `python -m helpers doctor`, check smoke_matmul. "
        "For a newer major number another wheel is needed.",
        error=(r"sm_\d+ is not compatible|sm_89", r"no kernel image is available for execution"),
        log=(r"CUDA capability sm_\d+ is not compatible", r"sm_89 (?:is )?not supported"),
        source="pytorch#152690",
    ),
    Sign(
        "E15",
        "the recipe was made for a card with more memory",
        "Cards of one name come with 8, 12 or 16 GB; memory decides, not the name.",
        "Choose the preset by the card's bytes: `python -m helpers doctor` names it, such as --preset 8gb.",
        numbers=small_card,
        refines="T1",
        source="developer.nvidia.com/cuda-gpus",
    ),
    Sign(
        "E16",
        "the old package pynvml is installed",
        "It is deprecated and hides the maintained one, which is imported by the same name.",
        lambda machine: (
            f"{python_command(machine)} -m pip uninstall -y pynvml ; "
            f"{python_command(machine)} -m pip install nvidia-ml-py ; then {fixes.RESTART}."
        ),
        log=(r"pynvml package is deprecated",),
        is_harmless=True,
        source="sglang#11395",
    ),
    Sign(
        "E17",
        "there is no torch for this Python",
        "Wheels exist for some versions of Python only.",
        fixes.make_venv,
        error=(r"No matching distribution found for torch\b",),
        log=(r"No matching distribution found for torch\b",),
        source="PyTorch's list of previous versions",
    ),
    Sign(
        "E18",
        "Windows cannot load one of PyTorch's DLLs",
        "The Visual C++ runtime is missing or too old.",
        "Install the latest Visual C++ x64 redistributable: winget install Microsoft.VCRedist.2015+.x64 ; then "
        f"{fixes.RESTART}.",
        error=(r"WinError (?:126|127|1114).*(?:c10|torch|shm|fbgemm)",),
        log=(r"WinError (?:126|127|1114).*(?:c10|torch|shm|fbgemm)",),
        source="pytorch#131662",
    ),
    Sign(
        "E19",
        "torch and numpy do not fit each other",
        "A torch older than 2.3 cannot be used with numpy 2.",
        fixes.install_project,
        error=(r"Numpy is not available", r"compiled using NumPy 1\.x"),
        log=(r"compiled using NumPy 1\.x",),
        source="pytorch#132179",
    ),
    Sign(
        "E20",
        "the notebook's kernel is another Python",
        "The package is installed somewhere else than in the Python that runs this kernel.",
        _kernel,
        error=(rf"^ModuleNotFoundError: No module named '(?:{_COURSE})'",),
        source="jupyter/notebook#1354",
    ),
    Sign(
        "E21",
        "a package was upgraded under a running kernel",
        "The old version is loaded, the new one lies on the disk.",
        f"{fixes.RESTART.capitalize()}: Kernel, Restart.",
        error=(r"restart (?:your |the )?(?:kernel|runtime|session)",),
        log=(r"you may need to restart the kernel to use updated packages", r"loaded: .* installed: "),
        is_harmless=True,
        source="transformers#24147",
    ),
    Sign(
        "E22",
        "torch.compile finds no Triton",
        "Triton is built for Linux; on Windows it is not there.",
        "Set torch_compile to auto, which compiles under Linux alone, or to never; or use WSL2.",
        error=(r"Cannot find a working triton installation|TritonMissing|No module named 'triton'",),
        source="pytorch#136361",
    ),
    Sign(
        "E23",
        "the allocator's options do not work here",
        "They have two names, and expandable segments fail on Windows and WSL2.",
        _drop_allocator_options,
        error=(r"CUDA driver error: (?:unknown error|invalid argument)", r"Unrecognized CachingAllocator option"),
        log=(
            r"expandable_segments not supported on this platform",
            r"PYTORCH_CUDA_ALLOC_CONF is deprecated",
            r"Unrecognized CachingAllocator option",
        ),
        source="pytorch#183387, #192330",
    ),
    Sign(
        "E24",
        "a path is too long for Windows",
        "Windows stops at 260 characters; the Hub's cache has long names.",
        _short_cache,
        error=(r"WinError 206", r"FileNotFoundError.*\.incomplete"),
        log=(r"WinError 206", r"cache-system uses symlinks by default.*does not support them"),
        source="huggingface_hub#4546",
    ),
)

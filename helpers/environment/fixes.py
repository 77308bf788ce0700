"""The exact commands that fix a problem on a platform: Linux, Windows, WSL2 or a container; pip or conda."""

from helpers.environment.facts import Machine
from helpers.environment.wheels import DRIVERS, NO_WHEEL, expects_gpu, python_command, triton_for_windows, wheel_advice

RESTART = "restart the kernel (or Python)"
RESTART_SHELL = "start JupyterLab (or Python) again from the same shell"  # a new kernel inherits JupyterLab's variables
RESTART_FIRST = "Restart the kernel (or Python)"  # at the beginning of a sentence
VISUAL_CPP = "winget install Microsoft.VCRedist.2015+.x64"  # the runtime of Visual C++, which Windows itself lacks
LONG_PATHS = (
    r"Set-ItemProperty HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem LongPathsEnabled 1 "
    "(in PowerShell as administrator)"
)
PURGE_LINUX_DRIVER = (  # from a WSL2 distribution: the driver belongs on Windows alone
    "sudo apt-get purge 'nvidia-driver-*' 'libnvidia-compute-*' 'cuda-drivers*' ; then update the driver on "
    f"Windows ({DRIVERS}), and in PowerShell: wsl --update ; wsl --shutdown"
)
_POWERSHELL = ("$env:", "Remove-Item", "Stop-Process", "& '")
GIVE_CARD = (
    "docker run --gpus all ... or podman run --device nvidia.com/gpu=all ... (both need nvidia-container-toolkit); in "
    "Kubernetes ask for a card in the pod's resources: limits: nvidia.com/gpu: 1"
)
RELIEVE_CARD = (  # more power would make a hot card hotter
    "If it is hot, improve the airflow and clean its fans; else raise its power limit, choose the performance mode of "
    "a laptop, and check the power supply and its cables."
)
WSL_MEMORY = (
    "In %UserProfile%\\.wslconfig (UTF-8) write two lines, [wsl2] and memory=12GB (or more); "
    "then in PowerShell: wsl --shutdown"
)


def with_shell(fix: str) -> str:
    """Add to a fix that it is for PowerShell, if Windows' other shell would not understand it.

    >>> with_shell("$env:HF_HOME = 'C:/hf'"), with_shell("export HF_HOME=/hf")
    ("$env:HF_HOME = 'C:/hf'. The commands are for PowerShell.", 'export HF_HOME=/hf')
    """
    is_for_one = any(words in fix for words in _POWERSHELL) and "PowerShell" not in fix
    return f"{fix.removesuffix('.')}. The commands are for PowerShell." if is_for_one else fix


def set_variables(machine: Machine, **values: str) -> str:
    """Return the command that sets environment variables, and what must restart."""
    command = "$env:{} = '{}'" if machine.platform.kind == "Windows" else "export {}={}"
    return " ; ".join([*(command.format(*item) for item in values.items()), f"then {RESTART_SHELL}."])


def unset(machine: Machine, *names: str) -> str:
    """Return the command that removes environment variables, and what must restart."""
    if machine.platform.kind == "Windows":
        return "; ".join(f"Remove-Item Env:{name}" for name in names) + f"; then {RESTART_SHELL}."
    place = ", and drop it from the container's -e options" if machine.platform.container else ""
    return f"unset {' '.join(names)}{place}; then {RESTART_SHELL}."


def install_wheel(machine: Machine) -> str:
    """Return the command that installs the wheel this machine needs.

    The old torch is removed first, because pip would keep a broken one of the same version. So are torchvision and
    torchaudio, which were built for it: transformers would import them and fail.
    """
    advice, python = wheel_advice(machine), python_command(machine)
    if not advice.pip:
        return (
            f"{NO_WHEEL} On an Apple chip use a Python for arm64: this one runs under Rosetta. On an Intel chip use "
            "the container: docker build -t gpt2-course -f .devcontainer/Dockerfile . ; "
            "docker run -p 127.0.0.1:8888:8888 gpt2-course"
        )
    if advice.tag == "cpu" and expects_gpu(machine):  # the driver is too old for any CUDA wheel
        return f"{update_driver(machine)} Then ask for the wheel: {python} -m helpers.environment --wheel"
    remove = "" if machine.torch.state == "absent" else f"{python} -m pip uninstall -y torch torchvision torchaudio ; "
    line = f"{remove}{advice.pip} ; then {RESTART}."
    return f"{update_driver(machine)} Then: {line}" if "update driver" in advice.reason else line


def install_triton(machine: Machine) -> str:
    """Return the command that installs the Triton for this torch on Windows, where it is a separate package."""
    wanted = triton_for_windows(machine.torch.version if machine.torch else "") or "triton-windows"
    return f'{python_command(machine)} -m pip install "{wanted}"'


def newer_driver_or_older_wheel(machine: Machine) -> str:
    """Return both fixes for a wheel that is too new for the driver; for some cards there is only the first."""
    update = update_driver(machine)
    runs_here = wheel_advice(machine).tag in ("cu126", "cu128")
    return f"{update} Or keep the driver: {install_wheel(machine)}" if runs_here else update


def install_project(machine: Machine) -> str:
    """Return the command that installs the tested version of every package and keeps a torch that works."""
    return f"{python_command(machine)} -m helpers install --here ; then {RESTART}."


def update_driver(machine: Machine) -> str:
    """Return how to install or update the driver on this system."""
    kind = machine.platform.kind
    if kind == "Windows":
        return f"Install the newest driver for this card from {DRIVERS} and restart Windows."
    if kind in ("WSL2", "WSL1"):
        return (
            f"On Windows install the newest driver for this card from {DRIVERS}, "
            "then `wsl --update` and `wsl --shutdown`."
        )
    if machine.platform.container:
        return f"Update the driver of the machine that runs this container ({DRIVERS}), and reboot it."
    return (
        "Install the newest driver for this card that your distribution offers (on Ubuntu: sudo ubuntu-drivers "
        f"install), or the one from {DRIVERS}, and reboot."
    )


def reboot(machine: Machine) -> str:
    """Return how to reload the driver on this system."""
    if machine.platform.kind in ("WSL2", "WSL1"):
        return "In PowerShell: wsl --shutdown ; then open WSL again."
    if machine.platform.kind == "Windows":
        return "Restart Windows."
    return "Reboot the machine that runs this container." if machine.platform.container else "sudo reboot"


def reload_uvm(machine: Machine) -> str:
    """Return how to repair CUDA after the computer slept: on Linux its memory module often stops working."""
    if machine.platform.kind != "Linux" or machine.platform.container:
        return reboot(machine)
    return "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm ; if that fails: sudo reboot"


def make_venv(machine: Machine) -> str:
    """Return how to create the environment again with a tested Python."""
    if machine.python.is_conda:
        also = ";" if machine.platform.kind == "Windows" else "&&"  # the PowerShell that comes with Windows has no &&
        activate = f"conda env create --yes -f environment.yml {also} conda activate gpt2-course"
        return f"{activate} {also} python -m helpers install --here"
    if machine.platform.kind == "Windows":
        return "winget install Python.Python.3.13 ; Remove-Item -Recurse .venv ; py -3.13 -m helpers install"
    return "Install Python 3.13, then: rm -rf .venv ; python3.13 -m helpers install"


def more_memory(machine: Machine) -> str:
    """Return how to get more main memory on this system."""
    if machine.platform.kind in ("WSL2", "WSL1"):
        return WSL_MEMORY
    if machine.platform.container:
        return "Give the container more memory (docker run --memory=12g), or close other programs on its machine."
    return "Close other programs, browsers first."

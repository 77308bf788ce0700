"""The exact commands that fix something, for this platform: Linux, Windows, WSL2 or a container; pip or conda."""

from helpers.environment.facts import Machine
from helpers.environment.requirements import version_number
from helpers.environment.wheels import DRIVERS, expects_gpu, python_command, wheel_advice

RESTART = "restart the kernel (or Python)"
RESTART_FIRST = "Restart the kernel (or Python)"  # at the beginning of a sentence


def set_variable(machine: Machine, name: str, value: str) -> str:
    """Return the command that sets an environment variable."""
    return f"$env:{name} = '{value}'" if machine.platform.kind == "Windows" else f"export {name}={value}"


def unset(machine: Machine, *names: str) -> str:
    """Return the command that removes variables from the environment, and what must restart."""
    if machine.platform.kind == "Windows":
        return "; ".join(f"Remove-Item Env:{name}" for name in names) + f"; then {RESTART}."
    place = ", and drop it from the container's -e options" if machine.platform.container else ""
    return f"unset {' '.join(names)}{place}; then {RESTART}."


def install_wheel(machine: Machine) -> str:
    """Return the command that installs the wheel this machine needs.

    The old torch is removed first, because pip would keep a broken one of the same version.
    """
    advice, python = wheel_advice(machine), python_command(machine)
    if advice.tag == "cpu" and expects_gpu(machine):  # no CUDA wheel runs on such an old driver
        return f"{update_driver(machine)} Then ask for the wheel: {python} -m helpers.environment --wheel"
    remove = "" if machine.torch.state == "absent" else f"{python} -m pip uninstall -y torch ; "
    line = f"{remove}{advice.pip} ; then {RESTART}."
    return f"{update_driver(machine)} Then: {line}" if "update driver" in advice.reason else line


def newer_driver_or_older_wheel(machine: Machine) -> str:
    """Return both solutions for a wheel that is too new for the driver; some cards have only the first."""
    update = update_driver(machine)
    return f"{update} Or keep the driver: {install_wheel(machine)}" if wheel_advice(machine).tag == "cu126" else update


def install_project(machine: Machine) -> str:
    """Return the command that brings every package to a tested version; torch first, or pip would choose its wheel."""
    has, pinned = (versions.get("torch", "") for versions in (machine.packages.installed, machine.packages.pinned))
    wheel = "" if has and version_number(has) == version_number(pinned or has) else f"{wheel_advice(machine).pip} ; "
    # quoted, because zsh takes [ ] for a pattern; cmd.exe knows only double quotes
    quote = '"' if machine.platform.kind == "Windows" else "'"
    line = f"{python_command(machine)} -m pip install -c constraints.txt -e {quote}.[test,gpu]{quote}"
    return f"{wheel}{line} ; then {RESTART}."


def give_card(machine: Machine) -> str:
    """Return how to give a container the card of its machine."""
    container = machine.platform.container
    if "containerenv" in container or "podman" in container:
        return "podman run --device nvidia.com/gpu=all ... (needs nvidia-container-toolkit: nvidia-ctk cdi generate)"
    if "KUBERNETES" in container:
        return "Ask for a card in the pod's resources: limits: nvidia.com/gpu: 1"
    return "docker run --gpus all ... (needs nvidia-container-toolkit)"


def update_driver(machine: Machine) -> str:
    """Return how to install or update the driver on this system."""
    kind, distribution = machine.platform.kind, machine.platform.distribution
    if kind == "Windows":
        return f"Install the newest driver from {DRIVERS} and restart Windows."
    if kind in ("WSL2", "WSL1"):
        return f"On Windows install the newest driver from {DRIVERS}, then `wsl --update` and `wsl --shutdown`."
    if machine.platform.container:
        return f"Update the driver of the machine that runs this container ({DRIVERS}), and reboot it."
    for name, line in (
        ("ubuntu", "sudo ubuntu-drivers install"),
        ("debian", "sudo apt install nvidia-driver"),
        ("fedora", "sudo dnf install akmod-nvidia"),
        ("arch", "sudo pacman -S nvidia-open"),
    ):
        if name in distribution.split():
            return f"{line} ; then reboot (or take the newest driver from {DRIVERS})."
    return f"Install the newest driver from {DRIVERS}, then reboot."


def reboot(machine: Machine) -> str:
    """Return how to load the driver again on this system."""
    if machine.platform.kind in ("WSL2", "WSL1"):
        return "In PowerShell: wsl --shutdown ; then open WSL again."
    if machine.platform.kind == "Windows":
        return "Restart Windows."
    return "Reboot the machine that runs this container." if machine.platform.container else "sudo reboot"


def reload_uvm(machine: Machine) -> str:
    """Return how to wake CUDA after the computer slept: Linux then loses CUDA's memory module."""
    if machine.platform.kind != "Linux" or machine.platform.container:
        return reboot(machine)
    return "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm ; if that fails: sudo reboot"


def purge_linux_driver(machine: Machine) -> str:
    """Return how to remove a Linux driver from a WSL2 distribution: the driver belongs on Windows alone."""
    return (
        "sudo apt-get purge 'nvidia-driver-*' 'libnvidia-compute-*' 'cuda-drivers*' ; then update the driver on "
        f"Windows ({DRIVERS}), and in PowerShell: wsl --update ; wsl --shutdown"
    )


def make_venv(machine: Machine) -> str:
    """Return how to make the environment again with a Python that is tested."""
    if machine.python.is_conda:
        also = ";" if machine.platform.kind == "Windows" else "&&"  # the PowerShell of Windows itself has no &&
        return f"conda env create --yes -f environment.yml {also} conda activate gpt2-course"
    if machine.platform.kind == "Windows":
        return "winget install Python.Python.3.12 ; py -3.12 -m venv --clear .venv ; then install the project into it."
    return "Install Python 3.12, then: rm -rf .venv && make course PYTHON=python3.12"


def more_memory(machine: Machine) -> str:
    """Return how to get more main memory on this system."""
    if machine.platform.kind in ("WSL2", "WSL1"):
        return (
            "In %UserProfile%\\.wslconfig (UTF-8) write two lines, [wsl2] and memory=12GB (or more); "
            "then in PowerShell: wsl --shutdown"
        )
    if machine.platform.container:
        return "Give the container more memory (docker run --memory=12g), or close other programs on its machine."
    return "Close other programs, browsers first."

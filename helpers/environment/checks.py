"""All 25 checks, in the order in which a support engineer would make them."""

from helpers.environment.card_checks import (
    alloc_conf,
    gpu_identity,
    other_processes,
    precision_choice,
    sysmem_fallback,
    throttle_power,
    vram_free,
)
from helpers.environment.driver_checks import (
    arch_covered,
    cuda_available,
    driver_floor,
    nvml_alive,
    smoke_matmul,
    torch_build,
    visible_devices,
    wsl_libcuda,
)
from helpers.environment.facts import Machine
from helpers.environment.python_checks import (
    env_kernel_match,
    notebook_stack,
    package_floor,
    platform_kind,
    python_version,
    stale_imports,
)
from helpers.environment.rules import STATUSES, Check
from helpers.environment.system_checks import disk_free, paths, ram_available, tokenizer_and_model_files

RULES = (
    python_version, env_kernel_match, stale_imports, package_floor, torch_build,
    platform_kind, driver_floor, nvml_alive, cuda_available, visible_devices,
    wsl_libcuda, arch_covered, smoke_matmul, gpu_identity, vram_free,
    other_processes, sysmem_fallback, throttle_power, alloc_conf, precision_choice,
    ram_available, disk_free, paths, tokenizer_and_model_files, notebook_stack,
)  # fmt: skip


def examine(machine: Machine) -> "list[Check]":
    """Make every check; the worst come first, and those alike in the order above."""
    return sorted((rule(machine) for rule in RULES), key=lambda check: STATUSES.index(check.status))

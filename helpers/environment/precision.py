"""Whether this hardware computes in bf16; `helpers.training.chosen_precision` decides what a run uses."""


def has_bf16() -> bool:
    """Say whether this machine multiplies bf16 matrices in hardware: CUDA 8.0 and newer, AVX-512 bf16 or AMX."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))

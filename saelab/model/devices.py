"""Which device a setting means, and whether it can compute in bfloat16 at speed."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import torch

from saelab.errors import ConfigError

logger = logging.getLogger(__name__)

BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "avx10_2", "bf16", "svebf16"}
"""Names of the CPU features that multiply bfloat16, on x86 and on ARM."""


def resolve_device(name: str) -> torch.device:
    """The device a setting names: "cpu", "cuda", "cuda:1" …, or "auto", a GPU where there is one.

    Raises:
        ConfigError: there is no such device here.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {name!r} cannot be used here ({reason}): choose auto, cpu or cuda"
        ) from None


def bfloat16_is_slow(device: torch.device) -> bool:
    """Whether a device is a CPU known to have no instructions for bfloat16 products."""
    features = cpu_features() if device.type == "cpu" else set()
    return bool(features) and not features & BFLOAT16_INSTRUCTIONS


@cache
def warn_if_bfloat16_is_slow(device: torch.device, what: str, instead: str) -> None:
    """Log, once, that a CPU has no bfloat16 instructions; the dtype stays what was asked for.

    Args:
        device: where it is computed.
        what: takes longer.
        instead: options to give.
    """
    if bfloat16_is_slow(device):
        logger.warning(
            "this CPU has no bfloat16 instructions: %s takes up to 60 times as long as in float32; "
            "give %s",
            what,
            instead,
        )


def cpu_features() -> set[str]:
    """Names of the CPU's instruction sets; empty where neither torch nor the system lists them."""
    # Not in every torch that saelab runs with.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    names = {name for name, value in capabilities.items() if value is True}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return names
    flags = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "feat")))
    return names.union(*map(str.split, flags))

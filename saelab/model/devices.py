"""Which device a setting means."""

from __future__ import annotations

import torch

from saelab.errors import ConfigError


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

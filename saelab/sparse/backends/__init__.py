"""The kernels behind sparse codes: one table by device, chosen in one place, by where a tensor is.

A backend is five functions on plain tensors and one number (`Kernels` says what each computes);
pairs come in compressed-sparse-row form. All of them pass `tests/sparse/test_backends.py`.
`cpu` and `cuda` are PyTorch's own functions. A module of Triton kernels registers itself as
`BACKENDS["triton"] = Kernels(...)`, and from then on serves every tensor that is not on the CPU;
what it does not write by hand it takes from `cuda`.
"""

from __future__ import annotations

from torch import Tensor

from .torch_functions import CPU, CUDA, Kernels

BACKENDS: dict[str, Kernels] = {"cpu": CPU, "cuda": CUDA}
"""Every backend by name."""


def backend_of(tensor: Tensor) -> Kernels:
    """The kernels for tensors that lie where this one does."""
    if tensor.device.type == "cpu":
        return BACKENDS["cpu"]
    return BACKENDS.get("triton", BACKENDS["cuda"])


__all__ = ["BACKENDS", "Kernels", "backend_of"]

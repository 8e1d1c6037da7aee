"""Loading a causal language model and its tokenizer from a local Hugging Face folder."""

from __future__ import annotations

from typing import Any

import torch

from saelab.errors import ModelError

from .model_files import ModelFiles, quiet_transformers


def load_hugging_face(
    files: ModelFiles, dtype: torch.dtype, device: torch.device
) -> tuple[Any, Any]:
    """Model (frozen, eval mode) and tokenizer from a local folder, never from the network.

    Raises:
        ModelError: the folder holds no causal language model that transformers can read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=dtype, local_files_only=True
            )
            tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True)
    except Exception as error:
        raise ModelError(
            f"model {files.name!r} in {files.folder} cannot be loaded "
            f"({str(error).strip().splitlines()[0][:200]}): "
            "it must be a causal language model that transformers can read"
        ) from error
    return model.to(device).eval().requires_grad_(False), tokenizer

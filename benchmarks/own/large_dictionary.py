"""Peak memory of commands on a large dictionary from elsewhere: 65,536 latents of width 2,304.

`python -m own.large_dictionary --out FOLDER`, run in `benchmarks`, writes random bfloat16 weights
as SAELens' files, and a language model of one block and few tokens. Then each command runs in a
process of its own, and a JSON line for each says what it took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WORDS = ("king", "queen", "mill", "river", "boat", "corn", "salt", "congress", "winter", "war")
LIMIT_GB = 4.0
"""What no command may take."""
N_DOCUMENTS = 2000


def main() -> None:
    """Write model and dictionary where they are missing, run the commands, print what they took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder to work in")
    parser.add_argument("--d-in", type=int, default=2304)
    parser.add_argument("--d-sae", type=int, default=65_536)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--prepare", action="store_true", help="only write model and dictionary")
    arguments = parser.parse_args()
    names = ("model", "text.txt", "theirs", "theirs-1", "ours", "ours-1")
    model, text, theirs, theirs_1, ours, ours_1 = (
        str(arguments.out.absolute() / name) for name in names
    )
    if arguments.prepare:
        write_text(Path(text))
        write_model(Path(model), arguments.d_in)
        for seed, folder in enumerate((theirs, theirs_1)):
            write_dictionary(Path(folder), arguments.d_in, arguments.d_sae, arguments.k, seed)
        return
    # In a process of its own, since a child's peak is never below that of who started it.
    if not Path(theirs).exists():
        subprocess.run([sys.executable, *sys.orig_argv[1:], "--prepare"], check=True)
    tokens = ["--n-tokens", str(arguments.tokens), "--device", "cpu", "--overwrite"]
    data = ["--model", model, "--text-source", text, "--context-length", "128"]
    commands = {
        "import": [theirs, *data, *tokens, "--out", ours],
        "import another": [theirs_1, *data, *tokens, "--out", ours_1],
        "eval core": [ours, *tokens, "--n-loss-tokens", "512"],
        "compare": [ours, ours_1, *tokens, "--n-loss-tokens", "512", "--steering-latents", "4"],
        "features": [ours, *tokens],
    }
    commands["compare"] += ["--out", str(arguments.out.absolute() / "compared")]
    peaks = []
    for name, words in commands.items():
        result = measured([*name.removesuffix(" another").split(), *words])
        print(json.dumps({"command": name, **result}), flush=True)
        peaks.append(result["peak_gb"])
    sys.exit(max(peaks) > LIMIT_GB)


def measured(words: list[str]) -> dict[str, float]:
    """Seconds and peak resident memory of one command of saelab's, mapped files included."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "saelab.cli", *words], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"{' '.join(words)} failed")
    return {
        "seconds": time.perf_counter() - start,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,  # kilobytes on Linux
    }


def write_text(path: Path) -> None:
    """Short documents of a few words."""
    generator = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [" ".join(generator.choices(WORDS, k=60)) for _ in range(N_DOCUMENTS)]
    path.write_text("\n<|endoftext|>\n".join(documents))


def write_model(folder: Path, d_model: int, n_layers: int = 1) -> None:
    """A random Llama of few tokens, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|bos|>", "<|endoftext|>"]
    tokenizer = Tokenizer(
        models.BPE({name: index for index, name in enumerate(special + alphabet)}, [])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1]
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(special + alphabet),
        hidden_size=d_model,
        intermediate_size=d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_dictionary(folder: Path, d_in: int, d_sae: int, k: int, seed: int) -> None:
    """SAELens' two files: random latents, of which each row has the k largest."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    tensors = {"W_enc": W_dec.T, "W_dec": W_dec}
    tensors |= {"b_enc": torch.zeros(d_sae), "b_dec": torch.zeros(d_in)}
    settings: dict[str, Any] = {"architecture": "topk", "d_in": d_in, "d_sae": d_sae, "k": k}
    settings |= {"dtype": "bfloat16", "apply_b_dec_to_input": True}
    settings |= {"normalize_activations": "none", "reshape_activations": "none"}
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.0.hook_resid_post"}
    folder.mkdir(parents=True)
    save_file(
        {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()},
        folder / "sae_weights.safetensors",
    )
    (folder / "cfg.json").write_text(json.dumps(settings | {"metadata": metadata}))


if __name__ == "__main__":
    main()

"""sae-lens end to end: train an SAE on a Hugging Face model, save it, judge it by sae_lens.evals.

For `saelab import`: what it says of such a folder must be what SAELens says. The SAE is a BatchTopK
one under its own runner, with the activations' scale estimated in training, and is saved as it
saves SAEs for inference: scale folded in, JumpReLU with one threshold. It reads the output of a
Hugging Face module, named as SAELens names it (`model.layers.12`).

Only training is cut short: the blocks after the one read are dropped, since nothing reads them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sae_lens
import torch
from datasets import Dataset
from sae_lens import SAE
from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
from sae_lens.evals import get_eval_everything_config, get_recons_loss, run_evals
from sae_lens.llm_sae_training_runner import LanguageModelSAETrainingRunner
from sae_lens.load_model import HookedProxyLM, load_model
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.util import get_special_token_ids
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Train where the folder holds no SAE yet, evaluate, print one JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--text", type=Path, required=True, help="folder of own/peers_text.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the SAE")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--d-sae", type=int, default=1152)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with contextlib.redirect_stdout(sys.stderr):
        if not (arguments.out / "sae_weights.safetensors").is_file():
            train(arguments)
        values = evaluate(arguments)
    (arguments.out / "saelens_evaluation.json").write_text(json.dumps(values, indent=2) + "\n")
    print(json.dumps(values))


def train(arguments: argparse.Namespace) -> None:
    """Train under SAELens' own runner and save for inference."""
    hook_name = f"model.layers.{arguments.layer}"
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    d_in = model.config.hidden_size
    model.model.layers = model.model.layers[: arguments.layer + 1]
    model.lm_head = nn.Linear(d_in, 1, bias=False)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    config = LanguageModelSAERunnerConfig(
        sae=BatchTopKTrainingSAEConfig(
            d_in=d_in,
            d_sae=arguments.d_sae,
            k=arguments.k,
            topk_threshold_lr=0.05,
            normalize_activations="expected_average_only_in",
        ),
        model_name=arguments.model,
        model_class_name="AutoModelForCausalLM",
        hook_name=hook_name,
        dataset_path=str(arguments.text / "train.jsonl"),
        is_dataset_tokenized=False,
        streaming=False,
        context_size=arguments.context_length,
        exclude_special_tokens=True,
        training_tokens=arguments.tokens,
        train_batch_size_tokens=512,
        store_batch_size_prompts=16,
        n_batches_in_buffer=8,
        n_batches_for_norm_estimate=8,
        lr=2e-3,
        lr_warm_up_steps=20,
        lr_decay_steps=arguments.tokens // 512 // 4,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(arguments.out),
        seed=0,
    )
    lines = (arguments.text / "train.jsonl").read_text(encoding="utf-8").splitlines()
    LanguageModelSAETrainingRunner(
        config,
        override_dataset=Dataset.from_list([json.loads(line) for line in lines]),
        override_model=HookedProxyLM(model.eval(), tokenizer, hook_names=[hook_name]),
    ).run()


@torch.no_grad()
def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """What sae_lens.evals says of the held-out tokens, and losses over all positions."""
    sae = SAE.load_from_disk(str(arguments.out), device="cpu")
    hook_name = sae.cfg.metadata.hook_name
    model = load_model("AutoModelForCausalLM", arguments.model, "cpu", hook_names=[hook_name])
    tokens = load_file(arguments.text / "held_out.safetensors")["tokens"]
    size = 8
    batches = [tokens[first : first + size] for first in range(0, len(tokens), size)]
    values, _ = run_evals(
        sae,
        _fixed_tokens(batches),
        model,
        ActivationScaler(),
        get_eval_everything_config(size, len(batches), len(batches)),
        exclude_special_tokens=True,
    )
    special = get_special_token_ids(model.tokenizer)
    losses = [
        get_recons_loss(sae, model, ActivationScaler(), batch, False, True, special)
        for batch in batches
    ]
    over_all = {
        name: torch.cat([part[name] for part in losses]).mean().item() for name in losses[0]
    }
    return {
        "library": f"sae-lens {sae_lens.__version__}",
        "hook_name": hook_name,
        "tokens": tokens.numel(),
        "special_ids": special,
        "tokens_masked": int(torch.isin(tokens, torch.tensor(special)).sum()),
        **values,
        "losses_over_all_positions": over_all,
    }


def _fixed_tokens(batches: list[torch.Tensor]) -> Any:
    """What `run_evals` asks of an ActivationsStore, with these batches, twice through."""
    stream = iter(batches * 2)
    return SimpleNamespace(
        get_batch_tokens=lambda _: next(stream),
        reset_input_dataset=lambda: None,
        store_batch_size_prompts=len(batches[0]),
        context_size=batches[0].shape[1],
    )


if __name__ == "__main__":
    main()

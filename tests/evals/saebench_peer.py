"""Run by the interpreter of sae-bench: its functions on tensors from a file, results to another."""

import sys
from types import SimpleNamespace

import numpy as np
import torch
from sae_bench.evals.scr_and_tpp import main as scr_and_tpp
from sae_bench.evals.sparse_probing import probe_training


def relu_sae(given):
    """The dictionary as sae-bench calls one."""
    W_dec = given["W_dec"]
    return SimpleNamespace(
        W_dec=SimpleNamespace(data=W_dec, shape=W_dec.shape),
        encode=lambda x: torch.relu((x - given["b_dec"]) @ given["W_enc"] + given["b_enc"]),
        decode=lambda f: f @ W_dec + given["b_dec"],
    )


def main(source, target):
    given = {name: torch.from_numpy(array) for name, array in np.load(source).items()}
    sae, acts = relu_sae(given), given["activations"]
    positive = given["positive"].bool()
    by_class = {"a": acts[positive], "b": acts[~positive]}
    weight = SimpleNamespace(net=SimpleNamespace(weight=given["probe"][None]))
    out = {
        f"effects_{scr}": scr_and_tpp.get_effects_per_class_precomputed_acts(
            sae, weight, "a", by_class, False, 16
        )
        for scr in ("tpp",)
    }
    chosen = scr_and_tpp.select_top_n_features(out["effects_tpp"], 5, "a")
    out["chosen"] = chosen
    out["ablated"] = scr_and_tpp.ablated_precomputed_activations(acts, sae, chosen, 16)
    pooled, labels = given["codes"], positive.int()
    # Its labels are 1 for the positive class or 0, as this version says.
    labels = torch.where(
        positive,
        probe_training.dataset_info.POSITIVE_CLASS_LABEL,
        probe_training.dataset_info.NEGATIVE_CLASS_LABEL,
    ).int()
    mask = probe_training.get_top_k_mean_diff_mask(pooled, labels, 3)
    out["top_k"] = ~mask
    picked = probe_training.apply_topk_mask_reduce_dim(pooled, mask)
    half = len(picked) // 2
    _, accuracy = probe_training.train_sklearn_probe(
        picked[:half], labels[:half], picked[half:], labels[half:]
    )
    out["accuracy"] = torch.tensor(accuracy)
    clean = {c: float(v) for c, v in zip("abc", given["clean"], strict=True)}
    after = {
        i: {5: {j: float(v) for j, v in zip("abc", row, strict=True)}}
        for i, row in zip("abc", given["after"], strict=True)
    }
    overall, _ = scr_and_tpp.create_tpp_plotting_dict(after, clean)
    out["tpp"] = torch.tensor(overall["tpp_threshold_5_total_metric"])
    np.savez(target, **{name: tensor.numpy() for name, tensor in out.items()})


main(*sys.argv[1:])

"""Cross-layer transcoders and crosscoders spliced in; what error and latents add to the logits.

The oracle is the plain Hugging Face model with hooks, and float64 numpy on what it has.
"""

import dataclasses

import numpy as np
import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.live_splice import sources_of
from saelab.evals.core.losses import windows_of
from saelab.evals.replacement.suite import ReplacementConfig, run_replacement
from saelab.formats.run import dictionary_folders
from saelab.model.language_model import load_language_model
from saelab.training.config import TrainConfig
from saelab.training.run import train

LAYERS, WIDTH, TOKENS = 3, 32, 256
READS = tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS))
STREAMS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(2))


@pytest.fixture(scope="module")
def runs(tiny_model_folder, model_text, tmp_path_factory):
    """A cross-layer transcoder of all MLPs, and a crosscoder over two layers."""
    out = tmp_path_factory.mktemp("replacement")
    stream = HarvestConfig(
        model=str(tiny_model_folder),
        text=model_text,
        context_length=32,
        n_tokens=1024,
        batch_contexts=8,
        model_dtype="float32",
        device="cpu",
    )
    config = TrainConfig(
        out=out / "clt",
        stream=stream,
        stream_pool_rows=512,
        reads=READS,
        writes=WRITES,
        cross_layer=True,
        d_sae=(48,),
        k=(6,),
        n_tokens=256 * 6,
        batch_rows=256,
        device="cpu",
        product_dtype="float32",
    )
    train(config)
    both = {"reads": STREAMS, "writes": STREAMS, "cross_layer": False}
    train(dataclasses.replace(config, out=out / "crosscoder", **both))
    return {name: dictionary_folders([out / name]) for name in ("clt", "crosscoder")}


class Plain:
    """The Hugging Face model on the windows that losses are measured on."""

    def __init__(self, saved, folder):
        model = load_language_model(str(folder), dtype="float32", device="cpu")
        self.text = windows_of(model, data_spec_of(saved, ReplacementConfig()), TOKENS).text
        self.plain, self.blocks = model._forward.plain, model._forward.plain.model.layers
        self.keep = ~torch.isin(self.text.tokens, torch.tensor(sorted(model.special_ids)))
        self.keep[:, 0] = False
        if self.text.left_out is not None:
            self.keep &= self.text.left_out == 0

    @torch.no_grad()
    def run(self, changes):
        """Logits, and what modules read and write at the rows; `changes` by module."""
        seen = {}

        def hook(module, arguments, out):
            hidden = (out[0] if isinstance(out, tuple) else out).clone()
            seen[module] = (arguments[0][self.keep], hidden[self.keep])
            if module in changes:
                hidden[self.keep] = changes[module](arguments[0][self.keep])
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        modules = [*self.blocks, *(block.mlp for block in self.blocks)]
        handles = [module.register_forward_hook(hook) for module in modules]
        logits = self.plain(input_ids=self.text.tokens).logits
        for handle in handles:
            handle.remove()
        return logits.double(), seen

    def loss(self, logits):
        of_next = logits[:, :-1].log_softmax(-1).gather(-1, self.text.tokens[:, 1:, None])[..., 0]
        return float(-self.text.of_text(of_next).mean())


def measured(folders, out, **settings):
    config = ReplacementConfig(out=out, n_loss_tokens=TOKENS, device="cpu", **settings)
    [result] = run_replacement(folders, config)
    return result, {metric.name: metric.value for metric in result.metrics}


def test_a_cross_layer_transcoder_is_spliced_layer_by_layer(runs, tmp_path, tiny_model_folder):
    result, values = measured(runs["clt"], tmp_path / "clt")
    saved = load_dictionary(runs["clt"][0])
    plain = Plain(saved, tiny_model_folder)
    sources = [opened() for opened, _ in sources_of(saved.dictionary, saved.site)]
    clean, seen = plain.run({})
    total = torch.zeros(int(plain.keep.sum()), LAYERS * WIDTH)

    def write(index):
        def change(x):
            total[:, index * WIDTH :] += sources[index](x)
            return total[:, index * WIDTH : (index + 1) * WIDTH]

        return change

    mlps = [block.mlp for block in plain.blocks]
    spliced, _ = plain.run({mlp: write(index) for index, mlp in enumerate(mlps)})
    assert values["loss_clean"] == pytest.approx(plain.loss(clean), abs=1e-5)
    assert values["loss_spliced"] == pytest.approx(plain.loss(spliced), abs=1e-5)
    zeros, _ = plain.run(dict.fromkeys(mlps, torch.zeros_like))
    assert values["loss_zero_ablation"] == pytest.approx(plain.loss(zeros), abs=1e-5)
    targets = torch.cat([seen[mlp][1] for mlp in mlps], dim=1)
    errors = (targets - total).square().unflatten(1, (LAYERS, WIDTH)).sum((0, 2))
    shares = errors / targets.square().unflatten(1, (LAYERS, WIDTH)).sum((0, 2))
    [left_out, alone] = result.tables
    assert [row[3] for row in left_out.rows] == pytest.approx(shares.tolist(), rel=1e-4)
    assert values["error_share_spliced"] == pytest.approx(float(shares.mean()), rel=1e-4)
    assert values["compounding"] in (None, pytest.approx(1.0))
    assert len(alone.rows) == 1 and values["n_hook_points"] == LAYERS


def test_direct_effects_are_those_of_float64_numpy(runs, tmp_path, tiny_model_folder):
    result, values = measured(runs["clt"], tmp_path / "clt", alone=False)
    saved = load_dictionary(runs["clt"][0])
    plain = Plain(saved, tiny_model_folder)
    logits, seen = plain.run({})
    mlps = [block.mlp for block in plain.blocks]
    x, y = (np.stack([seen[mlp][side].double().numpy() for mlp in mlps], axis=1) for side in (0, 1))
    norm, head = (
        weight.detach().double().numpy()
        for weight in (plain.plain.model.norm.weight, plain.plain.lm_head.weight)
    )
    stream = seen[plain.blocks[-1]][1].double().numpy()
    token = logits[plain.keep].argmax(-1).numpy()
    root = np.sqrt((stream**2).mean(1, keepdims=True))
    u = norm * (head[token] - head.mean(0)) / root
    # The logits of the model itself, from the stream: the direction is theirs.
    of_token = logits[plain.keep].numpy()
    of_token = of_token[np.arange(len(token)), token] - of_token.mean(1)
    np.testing.assert_allclose((stream * u).sum(1), of_token, rtol=1e-3, atol=1e-3)

    written, latents = np.zeros_like(y), 0.0
    for index, (opened, _) in enumerate(sources_of(saved.dictionary, saved.site)):
        tensors = {name: t.double().numpy() for name, t in opened().tensors().items()}
        pre = x[:, index] @ tensors["W_enc"] + tensors["b_enc"]
        smallest = np.sort(pre, axis=1)[:, -opened().k][:, None]
        f = np.where((pre >= smallest) & (pre > 0), pre, 0)
        rows = tensors["W_dec"].reshape(len(f.T), LAYERS - index, WIDTH)
        written[:, index:] += np.einsum("rl,lto->rto", f, rows)
        written[:, index:] += tensors["b_dec"].reshape(LAYERS - index, WIDTH)
        latents += np.abs(f * np.einsum("lto,ro->rl", rows, u)).sum()
    of_error, of_written = (
        np.abs(np.einsum("rto,ro->rt", part, u)).sum(0) for part in (y - written, written)
    )
    [left_out] = result.tables
    shares = of_error / (of_error + of_written)
    assert [row[4] for row in left_out.rows] == pytest.approx(shares.tolist(), rel=1e-4)
    whole = of_error.sum() / (of_error.sum() + of_written.sum())
    assert values["error_effect_share"] == pytest.approx(whole, rel=1e-4)
    completeness = latents / (latents + of_error.sum())
    assert values["logit_completeness"] == pytest.approx(completeness, rel=1e-4)
    error_share = ((y - written) ** 2).sum((0, 2)) / (y**2).sum((0, 2))
    assert [row[2] for row in left_out.rows] == pytest.approx(error_share.tolist(), rel=1e-4)
    assert values["error_share"] == pytest.approx(error_share.mean(), rel=1e-4)


def test_a_crosscoder_reads_the_untouched_model(runs, tmp_path, tiny_model_folder):
    result, values = measured(runs["crosscoder"], tmp_path / "crosscoder")
    saved = load_dictionary(runs["crosscoder"][0])
    plain = Plain(saved, tiny_model_folder)
    _, seen = plain.run({})
    blocks = plain.blocks[:2]
    x = torch.cat([seen[block][1] for block in blocks], dim=1)
    parts = dict(zip(blocks, saved.dictionary(x).split(WIDTH, dim=1), strict=True))
    put = {block: (lambda _, part=part: part) for block, part in parts.items()}
    assert values["loss_spliced"] == pytest.approx(plain.loss(plain.run(put)[0]), abs=1e-5)
    added = [
        plain.loss(plain.run({block: put[block]})[0]) - values["loss_clean"] for block in blocks
    ]
    _, alone = result.tables
    assert [row[1] for row in alone.rows] == [*STREAMS]
    assert [row[2] for row in alone.rows] == pytest.approx(added, abs=1e-5)
    # What is written last is what the logits see.
    assert values["loss_spliced"] - values["loss_clean"] == pytest.approx(added[1], abs=1e-4)


def test_where_nothing_is_written_to_the_residual_stream_there_is_no_direct_effect(
    tmp_path, tiny_model_folder, model_text
):
    inside = "blocks.1.mlp.hook_in"
    config = TrainConfig(
        out=tmp_path / "run",
        stream=HarvestConfig(
            model=str(tiny_model_folder),
            hook_points=(inside,),
            text=model_text,
            context_length=32,
            n_tokens=512,
            model_dtype="float32",
            device="cpu",
        ),
        stream_pool_rows=256,
        hook_point=inside,
        d_sae=(32,),
        k=(4,),
        n_tokens=512,
        batch_rows=256,
        device="cpu",
    )
    train(config)
    _, values = measured(dictionary_folders([config.out]), tmp_path / "out", alone=False)
    assert values["error_effect_share"] is None and values["logit_completeness"] is None
    assert values["error_share"] > 0

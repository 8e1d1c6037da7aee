"""Finetuning by the spliced model's loss: against plain hooks, float64 autograd, and a stop."""

import dataclasses

import pytest
import torch
from torch.nn import functional

from saelab.dictionary import Dictionary, Site, load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.errors import ConfigError, Stopped
from saelab.formats.run import dictionary_folders
from saelab.model.language_model import load_language_model
from saelab.text.contexts import TextBatch
from saelab.training import loop
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.finetune import reconstruct, spliced_figures, with_one_encoder
from saelab.training.finetune_command import FinetuneConfig, finetune
from saelab.training.run import train

READ, WRITTEN = "blocks.{layer}.mlp.hook_in", "blocks.{layer}.hook_mlp_out"


@pytest.fixture(scope="module")
def trained(tiny_harvest, tmp_path_factory):
    """A transcoder of each MLP of the tiny model, with a skip."""
    out = tmp_path_factory.mktemp("finetune") / "run"
    config = TrainConfig(
        out=out,
        stream=dataclasses.replace(tiny_harvest, gradients=False),
        stream_pool_rows=512,
        reads=(READ,),
        writes=(WRITTEN,),
        layers=(0, 1),
        skip=True,
        d_sae=(32,),
        k=(4,),
        n_tokens=256 * 6,
        batch_rows=256,
        device="cpu",
        product_dtype="float32",
    )
    train(config)
    return dictionary_folders([out])


def config_of(out, **changes):
    config = FinetuneConfig(
        out=out,
        n_steps=12,
        batch_contexts=8,
        device="cpu",
        checkpoint_every_steps=4,
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    return dataclasses.replace(config, **changes)


def dense(dictionary, x, tensors, selected):
    """The dictionary's function in plain autograd, with the latents that are active given."""
    pre = (x - dictionary.input_bias) @ tensors["W_enc"] + tensors["b_enc"]
    active = torch.zeros_like(pre)
    active[selected.pair_rows(), selected.latent] = 1.0
    written = (pre * active) @ tensors["W_dec"] + tensors["b_dec"]
    return written + x @ tensors["W_skip"].T


@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_loss_and_gradient_are_those_of_plain_hooks_in_float64(trained, tiny_model_folder, loss):
    model = load_language_model(str(tiny_model_folder), dtype="float64", device="cpu")
    saved = [load_dictionary(folder) for folder in trained]
    specs = [data_spec_of(each, FinetuneConfig()) for each in saved]
    dictionaries = [each.dictionary.double() for each in saved]
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
    for dictionary in dictionaries:
        for name in names:
            getattr(dictionary, name).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(5, model.d_vocab, (3, 12), generator=generator)
    tokens[:, 0] = model.bos_id
    figures = spliced_figures(
        model,
        list(zip(dictionaries, specs, strict=True)),
        TextBatch(tokens),
        loss=loss,
        reconstruction_weight=0.5,
    )
    figures.loss.backward()

    plain = model._forward.plain
    mlps = [block.mlp for block in plain.model.layers[:2]]
    copies = [
        {n: getattr(d, n).detach().clone().requires_grad_() for n in names} for d in dictionaries
    ]
    of_clean, fvu, handles = {}, {}, []
    for index, mlp in enumerate(mlps):
        handles.append(
            mlp.register_forward_hook(lambda m, a, out, i=index: of_clean.update({i: out.clone()}))
        )
    with torch.no_grad():
        clean = plain(input_ids=tokens).logits[:, :-1]
    for handle in handles:
        handle.remove()

    def splice(index, arguments, out):
        x = arguments[0][:, 1:].flatten(0, 1)
        with torch.no_grad():
            selected = dictionaries[index].encode(x)
        written = dense(dictionaries[index], x, copies[index], selected)
        target = of_clean[index][:, 1:].flatten(0, 1)
        fvu[index] = (target - written).square().sum() / (target - target.mean(0)).square().sum()
        return torch.cat([out[:, :1], written.reshape(3, 11, -1)], dim=1)

    handles = [
        mlp.register_forward_hook(lambda m, a, out, i=index: splice(i, a, out))
        for index, mlp in enumerate(mlps)
    ]
    logits = plain(input_ids=tokens).logits[:, :-1]
    for handle in handles:
        handle.remove()
    log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    cross_entropy = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    expected = {"kl": kl, "cross_entropy": cross_entropy}
    total = expected[loss] + 0.5 * (fvu[0] + fvu[1]) / 2
    total.backward()
    assert float(figures.kl.detach()) > 1e-4
    torch.testing.assert_close(figures.kl, kl)
    torch.testing.assert_close(figures.cross_entropy, cross_entropy)
    torch.testing.assert_close(figures.loss, total)
    for dictionary, copy in zip(dictionaries, copies, strict=True):
        for name in names:
            torch.testing.assert_close(getattr(dictionary, name).grad, copy[name].grad)


def test_a_set_is_finetuned_and_keeps_its_k(trained, tmp_path):
    run = finetune(trained, config_of(tmp_path / "tuned", n_steps=30))
    for folder in trained:
        figures = run["dictionaries"][folder.name]
        saved = load_dictionary(tmp_path / "tuned" / figures["folder"])
        before = load_dictionary(folder)
        assert saved.site == before.site and saved.dictionary.k == 4
        assert saved.manifest["config"]["finetuned"]["from"] == before.content_hash
        assert figures["l0"] <= 4
        norms = [each.dictionary.W_dec.norm(dim=1) for each in (saved, before)]
        torch.testing.assert_close(*norms)
        assert not torch.equal(saved.dictionary.W_enc, before.dictionary.W_enc)
    assert figures["kl_after"] < 0.9 * figures["kl_before"]


def test_a_stopped_run_goes_on_bit_for_bit(trained, tmp_path, monkeypatch):
    finetune(trained, config_of(tmp_path / "whole"))

    def stop(self, asked, last):
        if self.step == 7:
            raise Stopped("stopped", "SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_stop_if_asked", stop)
        with pytest.raises(Stopped):
            finetune(trained, config_of(tmp_path / "cut"))
    finetune(trained, config_of(tmp_path / "cut"), resume=True)
    for folder in trained:
        one, two = (
            load_dictionary(tmp_path / name / "dictionaries" / folder.name).dictionary.tensors()
            for name in ("whole", "cut")
        )
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    with pytest.raises(ConfigError, match="other settings"):
        finetune(trained, config_of(tmp_path / "cut", n_steps=13), resume=True)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "topk"])
def test_the_reconstruction_with_gradients_is_the_dictionarys(architecture, normalisation):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    names = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
    dictionary = Dictionary(
        architecture,
        W_enc=draw(6, 20),
        W_dec=draw(20, 6),
        b_dec=draw(6),
        k=3 if architecture == "topk" else None,
        input_normalisation=normalisation,
        **{name: draw(20) / 2 for name in names.get(architecture, ("b_enc",))},
    )
    x, same = draw(9, 6).requires_grad_(), with_one_encoder(dictionary, Site.of("a"))
    torch.testing.assert_close(reconstruct(same, x)[1], dictionary(x.detach()))
    assert torch.autograd.gradcheck(lambda x: reconstruct(same, x)[1], x)


def test_what_cannot_be_spliced_together_is_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match="are called"):
        finetune([trained[0], trained[0]], config_of(tmp_path / "run"))

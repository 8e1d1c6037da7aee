"""Cross-layer transcoders and crosscoders finetuned: against plain hooks and float64 autograd."""

import dataclasses

import pytest
import torch

from saelab.cli import main
from saelab.dictionary import Dictionary, Site, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.dictionary.layered import LayeredDictionary, in_layers
from saelab.dictionary.live_splice import sources_of
from saelab.errors import ConfigError, ResourceError, Stopped
from saelab.formats.run import dictionary_folders
from saelab.model.language_model import load_language_model
from saelab.text.contexts import TextBatch
from saelab.training import loop
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.finetune import spliced_figures, with_one_encoder
from saelab.training.finetune_command import FinetuneConfig, finetune
from saelab.training.run import train

LAYERS, WIDTH, ROWS = 3, 32, 11
READS = tuple(f"blocks.{layer}.mlp.hook_in" for layer in range(LAYERS))
WRITES = tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(LAYERS))
STREAMS = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(2))


@pytest.fixture(scope="module")
def folders(tiny_harvest, tmp_path_factory):
    """A cross-layer transcoder by method, and a crosscoder over two layers."""
    out = tmp_path_factory.mktemp("finetune")
    config = TrainConfig(
        out=out / "clt",
        stream=dataclasses.replace(tiny_harvest, gradients=False),
        stream_pool_rows=512,
        reads=READS,
        writes=WRITES,
        cross_layer=True,
        methods=("topk", "batch_topk"),
        d_sae=(48,),
        k=(6,),
        n_tokens=256 * 6,
        batch_rows=256,
        calibration_rows=1024,
        device="cpu",
        product_dtype="float32",
    )
    train(config)
    crosscoder = {"reads": STREAMS, "writes": STREAMS, "cross_layer": False, "methods": ("topk",)}
    train(dataclasses.replace(config, out=out / "crosscoder", **crosscoder))
    topk, jumprelu = sorted(dictionary_folders([out / "clt"]), key=lambda f: "batch" in f.name)
    return {"topk": topk, "jumprelu": jumprelu, "crosscoder": out / "crosscoder"}


def config_of(out, **changes):
    config = FinetuneConfig(
        out=out,
        n_steps=6,
        batch_contexts=8,
        device="cpu",
        checkpoint_every_steps=2,
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )
    return dataclasses.replace(config, **changes)


def tokens_of(model):
    tokens = torch.randint(5, model.d_vocab, (3, ROWS + 1), generator=torch.manual_seed(3))
    tokens[:, 0] = model.bos_id
    return tokens


def leaves_of(saved):
    """A dictionary's parts in float64 whose gradients are looked at, and leaves for plain code."""
    dictionary = with_one_encoder(saved.dictionary, saved.site).double()
    if isinstance(dictionary, LayeredDictionary):
        for index in range(LAYERS):
            dictionary.layer(index).double()
    parts = [opened() for opened, _ in sources_of(dictionary, saved.site)]
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    trained = [{name: getattr(part, name).requires_grad_() for name in names} for part in parts]
    return (
        dictionary,
        parts,
        trained,
        [
            {name: tensor.detach().clone().requires_grad_() for name, tensor in each.items()}
            for each in trained
        ],
    )


def dense(part, x, tensors):
    """A part's function in plain autograd, with the latents that are active given."""
    with torch.no_grad():
        active = part.encode_dense(x) > 0
    b_in = tensors["b_dec"] if part.b_in is None else part.b_in
    pre = (x - b_in) @ tensors["W_enc"] + tensors["b_enc"]
    return (pre * active) @ tensors["W_dec"] + tensors["b_dec"]


def hooked(plain, at, tokens):
    """Logits with (module's kind, layer) -> change of its (input, output) at the positions."""

    def hook(change):
        def splice(module, arguments, out):
            hidden = out[0] if isinstance(out, tuple) else out
            new = change(arguments[0][:, 1:].flatten(0, 1), hidden[:, 1:].flatten(0, 1))
            if new is None:
                return None
            new = torch.cat([hidden[:, :1], new.reshape(3, ROWS, -1)], dim=1)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        return splice

    handles = [module.register_forward_hook(hook(change)) for module, change in at]
    logits = plain(input_ids=tokens).logits[:, :-1]
    for handle in handles:
        handle.remove()
    return logits


def kl(clean, logits):
    log_p, log_q = clean.log_softmax(-1), logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def fvu(targets, written):
    return (targets - written).square().sum() / (targets - targets.mean(0)).square().sum()


def check(figures, expected, trained, copies):
    assert float(figures.kl.detach()) > 1e-4
    figures.loss.backward()
    expected.backward()
    torch.testing.assert_close(figures.loss, expected)
    for part, copy in zip(trained, copies, strict=True):
        for name in part:
            if part is trained[0] or name != "b_dec":
                torch.testing.assert_close(part[name].grad, copy[name].grad, msg=name)


@pytest.mark.parametrize("method", ["topk", "jumprelu"])
def test_a_cross_layer_transcoder_reads_each_layer_before_later_ones_are_written(
    folders, method, tiny_model_folder
):
    model = load_language_model(str(tiny_model_folder), dtype="float64", device="cpu")
    saved = load_dictionary(folders[method])
    dictionary, parts, trained, copies = leaves_of(saved)
    spec, tokens = data_spec_of(saved, FinetuneConfig()), tokens_of(model)
    figures = spliced_figures(
        model, [(dictionary, spec)], TextBatch(tokens), loss="kl", reconstruction_weight=0.5
    )
    plain = model._forward.plain
    mlps = [block.mlp for block in plain.model.layers]
    targets, written = {}, torch.zeros(3 * ROWS, LAYERS * WIDTH, dtype=torch.float64)

    with torch.no_grad():
        keep = [
            (mlp, lambda x, y, i=i: targets.update({i: y.clone()})) for i, mlp in enumerate(mlps)
        ]
        clean = hooked(plain, keep, tokens)

    def splice(index, x):
        nonlocal written
        adds = dense(parts[index], x, copies[index])
        before = torch.zeros(3 * ROWS, index * WIDTH, dtype=torch.float64)
        written = written + torch.cat([before, adds], dim=1)
        return written[:, index * WIDTH : (index + 1) * WIDTH]

    at = [(mlp, lambda x, y, i=i: splice(i, x)) for i, mlp in enumerate(mlps)]
    logits = hooked(plain, at, tokens)
    of_all = torch.cat([targets[index] for index in range(LAYERS)], dim=1)
    check(figures, kl(clean, logits) + 0.5 * fvu(of_all, written), trained, copies)
    torch.testing.assert_close(figures.kl, kl(clean, logits))


def test_hook_points_of_a_crosscoder_are_replaced_one_at_a_time(folders, tiny_model_folder):
    model = load_language_model(str(tiny_model_folder), dtype="float64", device="cpu")
    [folder] = dictionary_folders([folders["crosscoder"]])
    saved = load_dictionary(folder)
    dictionary, parts, trained, copies = leaves_of(saved)
    spec, tokens = data_spec_of(saved, FinetuneConfig()), tokens_of(model)
    figures = spliced_figures(
        model, [(dictionary, spec)], TextBatch(tokens), loss="kl", reconstruction_weight=0.5
    )
    plain = model._forward.plain
    streams, of_clean = plain.model.layers[:2], {}
    with torch.no_grad():
        keep = [
            (block, lambda x, y, i=i: of_clean.update({i: y.clone()}))
            for i, block in enumerate(streams)
        ]
        clean = hooked(plain, keep, tokens)
    x = torch.cat([of_clean[0], of_clean[1]], dim=1)
    written = dense(parts[0], x, copies[0])
    each = [
        kl(clean, hooked(plain, [(block, lambda x, y, w=w: w)], tokens))
        for block, w in zip(streams, written.split(WIDTH, dim=1), strict=True)
    ]
    check(figures, sum(each) / 2 + 0.5 * fvu(x, written), trained, copies)


@pytest.mark.parametrize("kind", ["topk", "crosscoder"])
def test_finetuned_saved_and_resumed_bit_for_bit(folders, kind, tmp_path, monkeypatch):
    [folder] = dictionary_folders([folders[kind]])
    run = finetune([folder], config_of(tmp_path / "whole"))
    figures = run["dictionaries"][folder.name]
    assert figures["kl_after"] < figures["kl_before"]

    def stop(self, asked, last):
        if self.step == 3:
            raise Stopped("stopped", "SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_stop_if_asked", stop)
        with pytest.raises(Stopped):
            finetune([folder], config_of(tmp_path / "cut"))
    finetune([folder], config_of(tmp_path / "cut"), resume=True)
    before = load_dictionary(folder)
    whole, cut = (
        load_dictionary(tmp_path / name / "dictionaries" / folder.name) for name in ("whole", "cut")
    )
    assert whole.content_hash != before.content_hash and whole.site == before.site
    parts = [
        [opened() for opened, _ in sources_of(each.dictionary, each.site)]
        for each in (whole, cut, before)
    ]
    assert len(parts[0]) == (LAYERS if kind == "topk" else 1)
    for one, two, old in zip(*parts, strict=True):
        assert all(torch.equal(tensor, two.tensors()[n]) for n, tensor in one.tensors().items())
        torch.testing.assert_close(one.W_dec.norm(dim=1), old.W_dec.norm(dim=1))
        assert not torch.equal(one.W_enc, old.W_enc)
    assert whole.dictionary.k == before.dictionary.k


def test_a_crosscoder_is_finetuned_alone(folders, tmp_path):
    [crosscoder] = dictionary_folders([folders["crosscoder"]])
    with pytest.raises(ConfigError, match=r"is a crosscoder, .*: finetune it alone"):
        finetune([folders["jumprelu"], crosscoder], config_of(tmp_path / "run"))


def test_one_larger_than_memory_is_refused_before_the_run(folders, tmp_path, monkeypatch):
    from saelab.training import finetune_command

    monkeypatch.setattr(finetune_command, "memory_of", lambda device: 50_000)
    with pytest.raises(ResourceError, match=r"takes 0\.\d GB .* finetune fewer at once"):
        finetune([folders["topk"]], config_of(tmp_path / "run"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_crosscoder_over_two_models_is_refused_in_a_line(
    folders, tiny_model_folder, tmp_path, capsys
):
    """Nobody can say whose loss it would be."""
    [folder] = dictionary_folders([folders["crosscoder"]])
    saved = load_dictionary(folder)
    hook_points = tuple(f"{label}/{STREAMS[0]}" for label in ("base", "chat"))
    models = {label: {"model": str(tiny_model_folder)} for label in ("base", "chat")}
    save_dictionary(
        tmp_path / "pair",
        saved.dictionary,
        self_test_inputs=torch.randn(16, 2 * WIDTH),
        training=saved.manifest["config"],
        made_from=saved.made_from
        | {"models": models, "norm_ceilings": dict.fromkeys(hook_points, None)},
        site=Site(hook_points, hook_points),
    )
    for command in (["finetune"], ["eval", "replacement"]):
        out = ["--out", str(tmp_path / command[-1]), "--device", "cpu"]
        assert main([*command, str(tmp_path / "pair"), *out]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()[-1:]
        assert "losses are of one model, and these are 2" in line


def block_dictionary(seed=0, n=3, d=4, size=5):
    """A cross-layer transcoder held as whole matrices, with a skip, and its pieces."""
    torch.manual_seed(seed)
    W_dec, skip = torch.randn(n * size, n * d), torch.randn(n * d, n * d)
    for index in range(n):
        W_dec[index * size : (index + 1) * size, : index * d] = 0
        skip[: index * d, index * d : (index + 1) * d] = 0
    return Dictionary(
        "jumprelu",
        W_enc=torch.block_diag(*torch.randn(n, d, size)),
        W_dec=W_dec,
        b_enc=torch.randn(n * size),
        b_dec=torch.randn(n * d),
        b_in=torch.randn(n * d),
        W_skip=skip,
        threshold=torch.rand(n * size),
    )


def test_whole_matrices_are_cut_at_their_blocks_and_nowhere_else():
    dictionary = block_dictionary()
    layered, x = in_layers(dictionary, 3), torch.randn(20, 12)
    torch.testing.assert_close(layered(x), dictionary(x))
    torch.testing.assert_close(layered.encode_dense(x), dictionary.encode_dense(x))
    for name in ("W_enc", "W_dec", "W_skip"):
        other = block_dictionary()
        outside = {"W_enc": (4, 0), "W_dec": (5, 0), "W_skip": (0, 4)}[name]
        assert getattr(other, name)[outside] == 0
        getattr(other, name)[outside] = 1
        assert in_layers(other, 3) is None, name


def test_one_whose_selection_spans_all_sources_is_refused(tiny_model_folder, folders, tmp_path):
    saved = load_dictionary(folders["topk"])
    together = LayeredDictionary(saved.dictionary.layer, [16] * LAYERS, k=3)
    assert in_layers(together, LAYERS) is None
    save_dictionary(
        tmp_path / "clt",
        together,
        self_test_inputs=torch.randn(16, LAYERS * WIDTH),
        training=saved.manifest["config"],
        made_from=saved.made_from,
        site=Site(READS, WRITES),
    )
    with pytest.raises(ConfigError, match="opened a layer at a time"):
        finetune([tmp_path / "clt"], config_of(tmp_path / "run"))

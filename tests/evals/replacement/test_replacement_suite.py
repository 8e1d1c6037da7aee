"""A set spliced into one pass, against plain hooks on the Hugging Face model, and against core."""

import pytest
import torch

from saelab.cache.config import HarvestConfig
from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import data_spec_of
from saelab.errors import ConfigError
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.losses import windows_of
from saelab.evals.core.suite import run_core
from saelab.evals.replacement.suite import ReplacementConfig, run_replacement
from saelab.formats.run import dictionary_folders
from saelab.model.language_model import load_language_model
from saelab.training.config import TrainConfig
from saelab.training.run import train

TOKENS = 256


@pytest.fixture(scope="module")
def transcoders(tiny_model_folder, model_text, tmp_path_factory):
    """One of each MLP of the tiny model."""
    out = tmp_path_factory.mktemp("replacement") / "run"
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
        out=out,
        stream=stream,
        stream_pool_rows=512,
        reads=("blocks.{layer}.mlp.hook_in",),
        writes=("blocks.{layer}.hook_mlp_out",),
        layers=(0, 1),
        d_sae=(32,),
        k=(4,),
        n_tokens=256 * 8,
        batch_rows=256,
        device="cpu",
        product_dtype="float32",
    )
    train(config)
    return dictionary_folders([out])


def values_of(folders, out, **settings):
    config = ReplacementConfig(out=out, n_loss_tokens=TOKENS, device="cpu", **settings)
    [result] = run_replacement(folders, config)
    return result, {metric.name: metric.value for metric in result.metrics}


def test_all_layers_replaced_equal_plain_hooks(transcoders, tmp_path, tiny_model_folder):
    result, values = values_of(transcoders, tmp_path / "all")
    saved = [load_dictionary(folder) for folder in transcoders]
    model = load_language_model(str(tiny_model_folder), dtype="float32", device="cpu")
    spec = data_spec_of(saved[0], ReplacementConfig())
    tokens = windows_of(model, spec, TOKENS).text
    plain = model._forward.plain
    special = torch.tensor(sorted(model.special_ids))
    keep = ~torch.isin(tokens.tokens, special)
    keep[:, 0] = False
    if tokens.left_out is not None:
        keep &= tokens.left_out == 0

    def run(change):
        def hook(index):
            def splice(module, arguments, out):
                out = out.clone()
                out[keep] = change(index, arguments[0][keep])
                return out

            return splice

        handles = [
            block.mlp.register_forward_hook(hook(index))
            for index, block in enumerate(plain.model.layers[:2])
        ]
        with torch.no_grad():
            logits = plain(input_ids=tokens.tokens).logits[:, :-1].double()
        for handle in handles:
            handle.remove()
        of_next = logits.log_softmax(-1).gather(-1, tokens.tokens[:, 1:, None])[..., 0]
        return tokens.of_text(logits.log_softmax(-1)), float(-tokens.of_text(of_next).mean())

    with torch.no_grad():
        logits = plain(input_ids=tokens.tokens).logits[:, :-1].double()
    clean = tokens.of_text(logits.log_softmax(-1))
    spliced, loss = run(lambda index, x: saved[index].dictionary(x))
    assert values["loss_spliced"] == pytest.approx(loss, abs=1e-5)
    zero = run(lambda index, x: torch.zeros(len(x), 32))[1]
    assert values["loss_zero_ablation"] == pytest.approx(zero, abs=1e-5)
    kl = float((clean.exp() * (clean - spliced)).sum(-1).mean())
    assert values["kl"] == pytest.approx(kl, abs=1e-5)
    agree = (clean.argmax(-1) == spliced.argmax(-1)).double().mean()
    assert values["same_top_token"] == pytest.approx(float(agree), abs=0.01)
    assert values["n_dictionaries"] == 2 and len(result.tables[0].rows) == 2


def test_one_alone_is_what_core_says_of_it(transcoders, tmp_path):
    _, values = values_of(transcoders[:1], tmp_path / "one")
    core = CoreConfig(n_tokens=TOKENS, n_loss_tokens=TOKENS, device="cpu", out=tmp_path / "core")
    [result] = run_core(transcoders[:1], core)
    expected = {metric.name: metric.value for metric in result.metrics}
    for name in values.keys() & expected.keys():
        assert values[name] == pytest.approx(expected[name], abs=1e-5), name
    assert values["error_share"] == pytest.approx(values["error_share_spliced"], rel=1e-4)
    assert values["compounding"] in (None, pytest.approx(1.0))


def test_two_that_write_one_hook_point_are_refused(transcoders, tmp_path):
    with pytest.raises(ConfigError, match=r"two of the dictionaries write blocks\.0"):
        values_of([transcoders[0], transcoders[0]], tmp_path / "twice")

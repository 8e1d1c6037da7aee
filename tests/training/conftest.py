"""A small cache of the tiny model's activations, and settings for runs on it."""

import pytest

from saelab.training.config import OptimizerConfig, TrainConfig

HOOK_POINT = "blocks.1.hook_resid_post"


@pytest.fixture(scope="session")
def words(tmp_path_factory):
    """A folder of short documents."""
    folder = tmp_path_factory.mktemp("words")
    for index in range(40):
        text = f"number {index}: the king met the queen at mill {index % 7} near the wide river. "
        (folder / f"{index:02}.txt").write_text(text * (3 + index % 5))
    return folder


@pytest.fixture(scope="session")
def tiny_harvest(tiny_model_folder, words):
    """Harvest settings of the tiny model over the short documents."""
    from saelab.cache.config import HarvestConfig
    from saelab.text.contexts import TextConfig

    return HarvestConfig(
        model=str(tiny_model_folder),
        hook_points=(HOOK_POINT,),
        text=TextConfig(source=str(words)),
        context_length=32,
        n_tokens=4096,
        batch_contexts=8,
        contexts_per_shard=32,
        model_dtype="float32",
        device="cpu",
        gradients=True,
    )


@pytest.fixture(scope="session")
def tiny_cache(tiny_harvest, tmp_path_factory):
    """The cache folder."""
    from saelab.cache.writer import write_caches

    return write_caches(tmp_path_factory.mktemp("caches") / "c", tiny_harvest)[0]


@pytest.fixture
def run_config(tiny_cache, tmp_path):
    """A short run of two dictionaries."""
    return TrainConfig(
        out=tmp_path / "run",
        cache=tiny_cache,
        d_sae=(64,),
        k=(4, 8),
        n_tokens=256 * 24,
        batch_rows=256,
        device="cpu",
        log_every_steps=5,
        checkpoint_every_steps=7,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )

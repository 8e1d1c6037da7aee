"""Hook points harvested together have the same rows, and every exclusion is counted at each."""

import pytest
import torch

from saelab.cache.aligned import AlignedCaches, require_same_rows
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.dictionary.site import Site
from saelab.errors import ActivationError

MASSIVE_AT_SECOND = 2 + ord("q")


@pytest.fixture
def both(program, table_model, small_text, tmp_path):
    """Caches of two hook points, each with a massive token of its own; and of each one alone."""
    second = program.HOOK_POINTS[1]
    table_model._tables[second][MASSIVE_AT_SECOND] *= 1000
    table_model._tables[second][program.MASSIVE] /= 1000
    config = program.small_config(small_text, hook_points=program.HOOK_POINTS)
    together = write_caches(tmp_path / "both", config, model=table_model)
    alone = [
        write_caches(
            tmp_path / f"alone{index}",
            program.small_config(small_text, hook_points=(name,)),
            model=table_model,
        )[0]
        for index, name in enumerate(program.HOOK_POINTS)
    ]
    return [open_cache(path) for path in together], [open_cache(path) for path in alone]


def columns(cache):
    batch = cache.rows(torch.arange(cache.n_rows), with_context=True)
    return batch.tokens, batch.sequence, batch.position


def test_a_row_excluded_at_one_is_excluded_at_all(both):
    (first, second), _ = both
    assert first.n_rows == second.n_rows
    for a, b in zip(columns(first), columns(second), strict=True):
        assert torch.equal(a, b)
    assert not torch.isin(columns(first)[0], torch.tensor([MASSIVE_AT_SECOND])).any()
    require_same_rows(first, second)


def test_exclusions_are_counted_by_reason_and_hook_point(both, program):
    (first, second), (alone, other) = both
    own, theirs = alone.excluded["norm"], other.excluded["norm"]
    assert own > 0 and theirs > 0 and own != theirs
    assert first.excluded["norm"] == own and second.excluded["norm"] == theirs
    assert first.excluded[f"norm_at:{program.HOOK_POINTS[1]}"] == theirs
    assert second.excluded[f"norm_at:{program.HOOK_POINTS[0]}"] == own
    for cache in (first, second):
        total = cache.manifest["n_tokens_processed"]
        assert cache.n_rows + sum(cache.excluded.values()) == total


def test_caches_of_separate_harvests_are_refused_where_their_rows_differ(both, program):
    _, (alone, other) = both
    site = Site(program.HOOK_POINTS[:1], program.HOOK_POINTS[1:])
    with pytest.raises(ActivationError, match="not side by side"):
        AlignedCaches(dict(zip(program.HOOK_POINTS, (alone, other), strict=True)), site)
    with pytest.raises(ActivationError, match="no cache of"):
        AlignedCaches({program.HOOK_POINTS[0]: alone}, site)


def test_a_column_that_differs_is_named(program, table_model, small_text, tmp_path):
    caches = []
    for index, word in enumerate(("fox", "cat")):
        folder = tmp_path / word
        folder.mkdir()
        for path in small_text.glob("*.txt"):
            (folder / path.name).write_text(path.read_text().replace("fox", word))
        config = program.small_config(folder, hook_points=program.HOOK_POINTS[index : index + 1])
        caches.append(open_cache(write_caches(tmp_path / f"c{word}", config, model=table_model)[0]))
    with pytest.raises(ActivationError, match="differ in their tokens"):
        require_same_rows(*caches)

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from saelab.cache.format import content_hash
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.errors import ActivationError, ArtifactError, ConfigError
from saelab.formats.files import sha256_of
from saelab.formats.manifest import write_manifest


@pytest.fixture
def cache(make_cache):
    return make_cache(gradients=True)


def edit_manifest(folder, *, rehash=True, **changes):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text()) | changes
    if rehash:
        manifest["content_hash"] = content_hash(manifest)
    write_manifest(path, manifest)


def replace_shard(folder, index, **tensors):
    """Put other tensors into a shard, and make the manifest agree with the file."""
    path = folder / f"shard-{index:05d}.safetensors"
    save_file({**load_file(path), **tensors}, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][index] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    edit_manifest(folder, shards=manifest["shards"])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rows_come_in_the_order_asked_for(cache, data):
    everything = torch.cat(
        [
            load_file(cache.folder / entry["file"])["activations"]
            for entry in cache.manifest["shards"]
        ]
    ).float()
    indices = data.draw(st.lists(st.integers(0, cache.n_rows - 1), max_size=60))
    batch = cache.rows(torch.tensor(indices, dtype=torch.int64))
    assert batch.activations.dtype == torch.float32
    assert torch.equal(batch.activations, everything[indices])
    assert torch.equal(batch.gradients, (everything[indices].bfloat16() * 0.5).float())
    assert batch.tokens is None and batch.sequence is None and batch.position is None


def test_iterating_reads_everything_once_in_order(cache):
    batches = list(cache.iterate(7))
    assert [len(batch.activations) for batch in batches[:-1]] == [7] * (len(batches) - 1)
    read = torch.cat([batch.activations for batch in batches])
    assert torch.equal(read, cache.rows(torch.arange(cache.n_rows)).activations)
    places = [
        (int(s), int(p)) for b in batches for s, p in zip(b.sequence, b.position, strict=True)
    ]
    assert places == sorted(set(places))


def test_batches_do_not_share_memory(cache):
    first = cache.rows(torch.arange(10)).activations
    kept = first.clone()
    cache.rows(torch.arange(10, 20))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("index", [-1, 10**9])
def test_rows_outside_are_refused(cache, index):
    with pytest.raises(IndexError, match="must lie in 0 to"):
        cache.rows(torch.tensor([0, index]))


def test_the_folder_above_will_do(program, table_model, small_text, tmp_path):
    one = program.small_config(small_text)
    (path,) = write_caches(tmp_path / "one", one, model=table_model)
    assert open_cache(tmp_path / "one").folder == path
    two = program.small_config(small_text, hook_points=program.HOOK_POINTS)
    write_caches(tmp_path / "two", two, model=table_model)
    with pytest.raises(ConfigError, match="holds 2 caches; name one of blocks"):
        open_cache(tmp_path / "two")
    opened = open_cache(tmp_path / "two", program.HOOK_POINTS[1])
    assert opened.hook_point == program.HOOK_POINTS[1]
    with pytest.raises(ActivationError, match="did you mean 'blocks"):
        open_cache(tmp_path / "two", "blocks.3.hook_resid_post")
    with pytest.raises(ActivationError, match="was asked for"):
        open_cache(path, program.HOOK_POINTS[1])
    with pytest.raises(ArtifactError, match="no activation cache"):
        open_cache(tmp_path / "nowhere")


def test_a_truncated_shard_is_named(cache):
    shard = cache.folder / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ArtifactError, match=r"shard-00001.*truncated.*--overwrite"):
        open_cache(cache.folder, verify=False)


def test_a_tampered_shard_is_named(cache):
    shard = cache.folder / "shard-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard-00002\.safetensors was changed"):
        open_cache(cache.folder)
    open_cache(cache.folder, verify=False)


def test_a_missing_shard_is_named(cache):
    (cache.folder / "shard-00003.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"shard-00003\.safetensors is missing"):
        open_cache(cache.folder)


def test_a_shard_of_another_cache_is_named(cache, make_cache):
    other = make_cache("other")
    shutil.copy(other.folder / "shard-00000.safetensors", cache.folder)
    with pytest.raises(ArtifactError, match=r"shard-00000.*foreign|truncated"):
        open_cache(cache.folder)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("activations", torch.zeros(3, 8)),
        ("tokens", torch.zeros(3, dtype=torch.int64)),
        ("surprise", torch.zeros(3)),
    ],
)
def test_shapes_and_dtypes_are_checked_even_where_hashes_agree(cache, name, tensor):
    replace_shard(cache.folder, 0, **{name: tensor})
    with pytest.raises(ArtifactError, match=rf"shard-00000\.safetensors holds {name} as"):
        open_cache(cache.folder)


def test_a_shard_that_is_no_safetensors_file_is_named(cache):
    shard = cache.folder / "shard-00000.safetensors"
    shard.write_bytes(b"\xff" * shard.stat().st_size)
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        open_cache(cache.folder, verify=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", ["activations", "gradients"])
def test_values_that_are_not_finite_are_named_by_shard_and_row(cache, value, column):
    rows = load_file(cache.folder / "shard-00001.safetensors")[column]
    rows[4, 3] = value
    replace_shard(cache.folder, 1, **{column: rows})
    opened = open_cache(cache.folder)
    before = cache.manifest["shards"][0]["rows"]
    opened.rows(torch.arange(before + 4))
    match = rf"shard-00001\.safetensors holds NaN or infinite {column} in its row 4"
    with pytest.raises(ActivationError, match=match):
        opened.rows(torch.arange(opened.n_rows).flip(0))


def test_sums_that_overflow_are_no_error(cache):
    rows = load_file(cache.folder / "shard-00000.safetensors")["activations"]
    replace_shard(cache.folder, 0, activations=torch.full_like(rows, 3e38))
    opened = open_cache(cache.folder)
    assert opened.rows(torch.arange(20)).activations.isfinite().all()


def test_an_unfinished_cache_is_refused(cache):
    edit_manifest(cache.folder, status="writing", rehash=False)
    with pytest.raises(ArtifactError, match=r"unfinished.*--resume"):
        open_cache(cache.folder)


@pytest.mark.parametrize("change", [{"norm_ceiling": 11.0}, {"status": "done"}, {"d_in": 7}])
def test_an_edited_manifest_of_an_unfinished_cache_is_refused(cache, change):
    edit_manifest(cache.folder, status="writing", rehash=False)
    path = cache.folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match="is incomplete or was edited"):
        open_cache(cache.folder)


def test_every_start_checks_a_sample_and_what_was_touched(make_cache, monkeypatch):
    from saelab.cache import format as cache_format

    folder = make_cache(contexts_per_shard=4).folder
    manifest = folder / "manifest.json"
    entries = cache_format.shard_entries(json.loads(manifest.read_text()), manifest)
    assert len(entries) > cache_format.SAMPLED_SHARDS + 3
    read = []
    whole = cache_format.sha256_of
    monkeypatch.setattr(
        cache_format, "sha256_of", lambda path, bar: read.append(path.name) or whole(path, bar)
    )
    open_cache(folder)
    assert {entries[0].file, entries[-1].file} <= set(read) and len(read) < len(entries)
    untouched = next(entry.file for entry in entries if entry.file not in read)
    content = bytearray((folder / untouched).read_bytes())
    content[-1] ^= 1
    (folder / untouched).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{untouched} was changed"):
        open_cache(folder)
    before = manifest.stat().st_mtime_ns
    os.utime(folder / untouched, ns=(before, before))
    open_cache(folder)
    with pytest.raises(ArtifactError, match=f"{untouched} was changed"):
        open_cache(folder, verify=True)


def test_an_edited_manifest_is_refused(cache):
    edit_manifest(cache.folder, norm_ceiling=1.0, rehash=False)
    with pytest.raises(ArtifactError, match="does not match its own content_hash"):
        open_cache(cache.folder)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"schema_version": 3}, "upgrade saelab"),
        ({"kind": "dictionary"}, "'activation_cache' was expected"),
        ({"d_in": "8"}, "lacks or garbles d_in"),
        ({"dtype": "int4"}, "garbles dtype"),
        ({"n_rows": 5}, "its manifest says 5"),
        ({"shards": [{"file": "../../etc/passwd"}]}, "describes shard 0 wrongly"),
    ],
)
def test_a_manifest_that_cannot_be_ours_is_refused(cache, changes, match):
    edit_manifest(cache.folder, **changes)
    with pytest.raises(ArtifactError, match=match):
        open_cache(cache.folder)


def test_a_shard_elsewhere_is_refused(cache):
    shards = json.loads((cache.folder / "manifest.json").read_text())["shards"]
    shards[0]["file"] = "../shard-00000.safetensors"
    edit_manifest(cache.folder, shards=shards)
    with pytest.raises(ArtifactError, match="was expected"):
        open_cache(cache.folder)


def test_a_manifest_that_is_no_json_is_refused(cache):
    (cache.folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        open_cache(cache.folder)

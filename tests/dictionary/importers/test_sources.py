"""Paths, Hub repositories and release names; pushing and pulling, with a Hub in a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest

from saelab.cli import main
from saelab.dictionary import load_dictionary
from saelab.dictionary.hub import plan_push
from saelab.dictionary.importers.sources import HubPath, find_release, hub_path, releases, resolve
from saelab.errors import ArtifactError
from saelab.formats.evaluation_result import read_evaluation_result


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub whose repositories are folders; what is asked of it is written down."""
    root, asked = tmp_path / "hub", []
    root.mkdir()

    def snapshot_download(repo, revision=None, allow_patterns=None):
        asked.append((repo, revision, allow_patterns))
        if not (root / repo).is_dir():
            from huggingface_hub.errors import RepositoryNotFoundError

            raise RepositoryNotFoundError("no", response=_Response())
        return str(root / repo)

    class Api:
        def create_repo(self, repo, private, exist_ok):
            asked.append(("create", repo, private))

        def create_commit(self, repo, operations, commit_message, revision):
            for operation in operations:
                path = root / repo / operation.path_in_repo
                path.parent.mkdir(parents=True, exist_ok=True)
                content = operation.path_or_fileobj
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copy(content, path)
            return type("Commit", (), {"commit_url": f"https://hub/{repo}"})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return root, asked


class _Response:
    headers: ClassVar[dict[str, str]] = {}
    request = None
    status_code = 404


def test_the_parts_of_a_hub_path():
    assert hub_path("hf:google/scope/layer_1/x@main") == HubPath(
        "google/scope", "layer_1/x", "main"
    )
    assert hub_path("hf:google/scope") == HubPath("google/scope", "", None)
    for wrong in ("hf:google", "hf:google//x", "hf:google/scope/../x", "hf:./scope"):
        with pytest.raises(ArtifactError, match="names no repository"):
            hub_path(wrong)


def test_every_release_of_the_table_says_where_it_lies():
    table = releases()
    assert "sae-lens" in table["made_from"] and table["date"]
    assert len(table["releases"]) == 170
    assert sum(len(release["saes"]) for release in table["releases"].values()) > 13_800
    where, hints = find_release("gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert where == HubPath("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre", None)
    assert hints["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    with pytest.raises(ArtifactError, match="did you mean"):
        find_release("gpt2-small-res-jb/blocks.99.hook_resid_pre")
    assert find_release("no-such-release/x") is None
    where, _ = find_release("mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_1")
    assert where == HubPath("mntss/clt-gemma-2-2b-2.5M", "", None)


def test_only_what_is_needed_is_fetched(hub, folder):
    root, asked = hub
    shutil.copytree(folder, root / "me" / "saes" / "a")
    source = resolve("hf:me/saes/a@v1")
    assert source.path == root / "me" / "saes" / "a"
    assert asked == [("me/saes", "v1", ["a", "a/*"])]
    (root / "me" / "saes" / "layer_0.pt").touch()
    assert resolve("hf:me/saes/layer_0.pt").path.is_file()
    assert asked[-1][2] == ["layer_0.pt", "layer_0.pt/*", "*.json", "*.yaml"]
    with pytest.raises(ArtifactError, match="holds no 'b'"):
        resolve("hf:me/saes/b")
    with pytest.raises(ArtifactError, match="there is no repository me/none"):
        resolve("hf:me/none/b")


def test_nothing_is_pushed_without_yes_and_pulling_gives_it_back(hub, folder, tmp_path, capsys):
    root, asked = hub
    (folder / "feature_labels.sqlite").write_text("mine")
    assert main(["push", str(folder), "hf:me/saes/a"]) == 0
    said = capsys.readouterr().out
    assert "Nothing was sent" in said and "sae_weights.safetensors" in said
    assert "# sae" in said and "blocks.1.hook_resid_post" in said
    assert not asked and not list(root.iterdir())
    assert main(["push", str(folder), "hf:me/saes/a", "--yes", "--private"]) == 0
    assert ("create", "me/saes", True) in asked
    sent = sorted(path.name for path in (root / "me" / "saes" / "a").iterdir())
    assert sent == sorted(
        ["README.md", "cfg.json", "sae_weights.safetensors", "saelab.json", "self_test.safetensors"]
    )
    assert main(["pull", "hf:me/saes/a", "--out", str(tmp_path / "back")]) == 0
    assert load_dictionary(tmp_path / "back").content_hash == load_dictionary(folder).content_hash
    assert main(["pull", "hf:me/saes/a", "--out", str(tmp_path / "back")]) == 2


def test_the_card_of_what_was_imported_says_whose_it_is_and_names_no_path_of_this_machine(
    copied, tmp_path
):
    out = tmp_path / "imported"
    unproved = ["--text-source", "sotu", "--context-length", "8", "--unproved", "--model", "m"]
    source = str(copied("batchtopk-batchtopk"))
    assert main(["import", source, *unproved, "--out", str(out)]) == 0
    card = plan_push(out, hub_path("hf:me/saes/a")).card
    whose = "Trained by others, and imported by saelab from `batchtopk-batchtopk` (batchtopk): "
    assert whose + "authors and licence are theirs." in card
    assert "Note: its training kept the largest" in card
    assert "Not proved: nothing was measured when it was imported." in card
    assert str(tmp_path) not in card and "Training method" not in card
    assert "Trained with saelab" not in card


def test_nothing_that_is_sent_names_a_path_of_this_machine(
    hub, copied, tmp_path, tiny_model_folder, model_text, capsys
):
    """Of model, text and source, with results and their pages; what comes back is intact."""
    root, _ = hub
    out, home = tmp_path / "imported", tiny_model_folder.parent
    words = ["--model", str(tiny_model_folder), "--text-source", str(model_text.source)]
    words += ["--held-out-fraction", "0.5", "--context-length", "32", "--device", "cpu"]
    words += ["--reads", "blocks.1.hook_resid_post", "--n-tokens", "320", "--out", str(out)]
    assert main(["import", str(copied("batchtopk-batchtopk")), *words]) == 0
    numbers = ["--n-tokens", "320", "--n-loss-tokens", "64", "--device", "cpu"]
    assert main(["eval", "core", str(out), *numbers]) == 0
    for file in (out / "saelab.json", out / "evals" / "core.json"):
        assert str(home) in file.read_text()
    capsys.readouterr()
    assert main(["push", str(out), "hf:me/saes/a", "--yes"]) == 0
    said = capsys.readouterr().out
    sent = [path for path in (root / "me" / "saes" / "a").rglob("*") if path.is_file()]
    assert {"core.json", "core.html", "README.md", "saelab.json"} <= {path.name for path in sent}
    for place in (home, tmp_path, Path(model_text.source).parent):
        assert str(place) not in said.replace(str(out), "")
        for path in sent:
            assert str(place).encode() not in path.read_bytes(), f"{path.name} names {place}"
    for path in sent:
        if path.name != "README.md":
            relative = path.relative_to(root / "me" / "saes" / "a")
            assert f"{relative} ({path.stat().st_size:,} bytes)" in said
    assert main(["pull", "hf:me/saes/a", "--out", str(tmp_path / "back")]) == 0
    back = load_dictionary(tmp_path / "back")
    assert back.model_name == tiny_model_folder.name
    assert back.made_from["imported"]["source"] == "batchtopk-batchtopk"
    result = read_evaluation_result(tmp_path / "back" / "evals" / "core.json")
    assert result.dictionary_hash == back.content_hash != load_dictionary(out).content_hash
    assert main(["push", str(tmp_path / "back"), "hf:me/again"]) == 0

"""Explanations of others: read as their tools write them, and written so that they read them."""

import gzip
import json
import subprocess

import pytest

from saelab.errors import ArtifactError
from saelab.explain.exchange import Imported, export_delphi, import_explanations
from saelab.features import neuronpedia
from saelab.features.label_content import Score
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore

SCORES = (Score("detection", 0.8, 0.7, 0.9, 40, 0.5, 0.49), Score("simulation", 0.25))


@pytest.fixture
def book(toy_folder):
    with FeatureStore(toy_folder) as store:
        made_from = store.manifest["made_from"]
        path = toy_folder / "feature_labels.sqlite"
        return LabelBook(path, made_from["dictionary_hash"], store.n_features)


def contents(book):
    keys = ("feature", "text", "author", "method", "model", "prompt_hash", "score", "scores")
    return [tuple(getattr(label, key) for key in keys) for label in book.all()]


def test_neuronpedias_files_of_ours_come_back_whole(toy_folder, book, tmp_path):
    book.add(1, "kings, queens", author="Ada, of X", score=0.5)
    book.add(2, "rivers 👑", author="x", method="m", model="tiny", prompt_hash="ab", scores=SCORES)
    before = contents(book)
    rows = [
        {
            "index": str(label.feature),
            "description": label.text,
            "notes": neuronpedia._origin_of(label, book._dictionary),
        }
        for label in book.all()
    ]
    (file,) = neuronpedia._write_batch(tmp_path / "explanations", 0, rows)
    for label in book.all():
        book.delete(label.id)
    assert import_explanations(toy_folder, tmp_path) == Imported(2, 0, None)
    assert contents(book) == before
    text = gzip.decompress(file.read_bytes()).decode()
    (changed := tmp_path / "changed.jsonl").write_text(text.replace(book._dictionary, "f" * 64))
    with pytest.raises(ArtifactError, match="it explains another dictionary"):
        import_explanations(toy_folder, changed)


SITE = [
    {"modelId": "m", "layer": "0-res", "index": "3", "description": " kings\nand queens ",
     "explanationModelName": "gpt-4o-mini", "typeName": "oai_token-act-pair",
     "scores": [{"value": 0.5, "explanationScoreTypeName": "eleuther_fuzz"}]},
    {"modelId": "m", "layer": "0-res", "index": 4, "description": "so, let me think " * 20},
    {"modelId": "m", "layer": "0-res", "index": 9999, "description": "rivers"},
]  # fmt: skip


def test_what_neuronpedias_site_exports_is_read_and_chatter_is_refused(toy_folder, book, tmp_path):
    (tmp_path / "export.json").write_text(json.dumps(SITE))
    imported = import_explanations(toy_folder, tmp_path / "export.json")
    assert (imported.written, imported.refused) == (1, 2)
    assert "feature 4: the explanation has 80 words" in imported.first_problem
    (label,) = book.all()
    assert (label.feature, label.text, label.model) == (3, "kings and queens", "gpt-4o-mini")
    assert (label.author, label.method) == ("neuronpedia", "oai_token-act-pair")
    assert label.scores == (Score("eleuther_fuzz", 0.5),)
    import_explanations(toy_folder, tmp_path / "export.json")
    assert len(book.all()) == 1, "read again, it replaces what was read before"


def write_delphi(folder, module, explanations, judged):
    for place in ("explanations", "scores/detection", "scores/fuzz"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for feature, text in explanations.items():
        name = f"{module}_latent{feature}.txt"
        (folder / "explanations" / name).write_text(json.dumps(text))
        for scorer in ("detection", "fuzz"):
            (folder / "scores" / scorer / name).write_text(json.dumps(judged))


def judged(activating, prediction):
    return {"str_tokens": ["a"], "activations": [0.0], "distance": 1, "activating": activating,
            "prediction": prediction, "probability": None, "correct": True}  # fmt: skip


def test_delphis_results_are_read_with_its_scores(toy_folder, book, tmp_path):
    # 3 of 4 firing and 1 of 2 silent ones told right; one answer could not be read.
    rows = [judged(True, True)] * 3 + [judged(True, False), judged(False, True)]
    rows += [judged(False, False), judged(False, None)]
    write_delphi(tmp_path, "model.layers.0", {2: "kings", 5: "rivers"}, rows)
    assert import_explanations(toy_folder, tmp_path).written == 2
    (label,) = book.of(2)
    assert (label.text, label.author) == ("kings", "delphi")
    assert label.scores == (Score("detection", 0.625, n=6), Score("fuzzing", 0.625, n=6))


def test_explanations_are_written_as_delphi_reads_them(toy_folder, book, tmp_path):
    with pytest.raises(ArtifactError, match="has no explanations"):
        export_delphi(toy_folder, tmp_path / "out")
    book.add(2, 'kings "and" 👑', author="x", method="m", scores=SCORES)
    killed = subprocess.Popen(["true"])
    killed.wait()
    begun = tmp_path / f"out.{killed.pid}.partial" / "explanations"
    begun.mkdir(parents=True)
    assert export_delphi(toy_folder, tmp_path / "out") == 1
    assert not begun.parent.exists()
    (file,) = (tmp_path / "out" / "explanations").iterdir()
    assert file.stem.split("latent")[-1] == "2"
    assert json.loads(file.read_text()) == 'kings "and" 👑'
    book.delete(book.of(2)[0].id)
    import_explanations(toy_folder, tmp_path / "out")
    assert [label.text for label in book.of(2)] == ['kings "and" 👑']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no JSON of explanations"),
        ('[{"index": 3}]', "expected index and description"),
        ('[{"index": "x", "description": "a"}]', "was damaged or edited"),
        ('[{"index": 3, "description": "a", "scores": [{"value": "x"}]}]', "damaged or edited"),
        ('[{"index": 3, "description": "a", "layer": "7-res"}]', "layer 7, and this one is of"),
        ("[]", "no explanation that can be read"),
        ('[{"index": 3, "description": ""}]', "feature 3: the explanation is empty"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(toy_folder, book, tmp_path, content, message):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ArtifactError, match=message) as raised:
        import_explanations(toy_folder, tmp_path / "export.json")
    assert "\n" not in str(raised.value)
    assert book.all() == []


def test_a_folder_of_two_modules_of_delphi_is_not_guessed_at(toy_folder, tmp_path):
    write_delphi(tmp_path, "a.layers.0.mlp", {2: "kings"}, [])
    write_delphi(tmp_path, "a.layers.0.attn", {2: "kings"}, [])
    with pytest.raises(ArtifactError, match=r"a\.layers\.0\.attn, a\.layers\.0\.mlp"):
        import_explanations(toy_folder, tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        import_explanations(toy_folder, tmp_path / "nothing")

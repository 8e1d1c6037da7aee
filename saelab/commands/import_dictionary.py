"""`saelab import SOURCE`: open a dictionary from elsewhere, prove it on text, keep it as ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from saelab.cache.config import TokenFilter
from saelab.config import Within, parse_arguments, problems_in, to_plain
from saelab.errors import ConfigError
from saelab.text.config import TextConfig

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from saelab.dictionary import Dictionary, Site
    from saelab.dictionary.importers import Foreign, Source
    from saelab.dictionary.importers.proof import Proof
    from saelab.model.language_model import LanguageModel

PROGRAM = "saelab import"


@dataclass(frozen=True, kw_only=True)
class ImportCommand:
    """Open a dictionary that another library saved, and prove that it reconstructs.

    A SAELens folder gets a manifest beside its files; anything else is converted into a folder.
    """

    source: tyro.conf.Positional[str]
    """A folder, a file, hf:repo/path@revision, or the name of a SAELens release and SAE."""
    format: str | None = None
    """Format of the source. None: recognised by its files."""
    out: Path | None = None
    """Folder to write. None: a SAELens folder itself, else a folder of the source's name here."""
    model: str | None = None
    """Language model it belongs to. None: what the source records."""
    model_dtype: Literal["bfloat16", "float32", "float16"] = "float32"
    """Dtype the model computes in."""
    reads: tuple[str, ...] = ()
    """Hook points it reads. None given: what the source records."""
    writes: tuple[str, ...] = ()
    """Hook points it writes. None given: what the source records, or what it reads."""
    text_source: str | None = None
    """The text it is judged on from now on: "sotu" (embedded), files, or a `datasets` name."""
    text_field: str = "text"
    """Field that holds the text."""
    held_out_fraction: float = 0.1
    """Fraction of the documents that it is judged on; norms are calibrated on the others."""
    context_length: Annotated[int | None, Within(2)] = None
    """Tokens in a context. None: what the source records."""
    token_filter: TokenFilter = field(default_factory=TokenFilter)
    """Which tokens count."""
    processed_weights: bool = False
    """It was trained on a model with folded norms and centred writing weights, as TransformerLens
    made them by default (most GPT-2 releases), and is brought to the raw model."""
    n_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of held-out text to prove it on."""
    device: str = "auto"
    """Device of the model and of the proof."""
    check: bool = False
    """Also run the library it comes from, which must be installed here, and compare."""
    unproved: bool = False
    """Keep it without running a model: nothing is measured, and no norm is too large."""
    overwrite: bool = False
    """Replace a dictionary that exists."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if self.writes and not self.reads:
            problems.append("writes: give --reads too, the hook points that it reads")
        if problems:
            raise ConfigError(problems)


CONFIG = ImportCommand


def main(arguments: Sequence[str]) -> None:
    """Run the command with the words after `saelab import`.

    Raises:
        SaelabError: whatever the user can put right.
    """
    command = parse_arguments(ImportCommand, arguments, program=PROGRAM)
    from saelab.dictionary.importers import read_foreign, recognise, resolve
    from saelab.formats.lock import writer_lock

    source = resolve(command.source)
    format_name = command.format or recognise(source)
    prover = _Prover(command)
    for foreign in read_foreign(source, format_name):
        folder = _folder_of(command, source, foreign)
        record = _record_of(command, source, format_name, foreign)
        # Before looking at what is there: another process may be about to write it.
        with writer_lock(folder / "saelab.json"):
            if _is_kept(command, source, folder, record):
                print(f"kept: {folder}, imported from the same files with the same settings")
            else:
                _keep(command, source, foreign, folder, record, prover)


def _folder_of(command: ImportCommand, source: Source, foreign: Foreign) -> Path:
    """Where a dictionary goes.

    Raises:
        ConfigError: that is the source itself.
    """
    # What lies in the Hub's cache is not ours to write to.
    local = Path(source.name).expanduser().exists()
    in_place = foreign.in_place and local and not (command.out or command.processed_weights)
    named = source.path.stem if source.path.is_file() else source.path.name
    default = source.path if in_place else Path(named)
    folder = (command.out or default) / foreign.name
    if not in_place and folder.resolve() == source.path.resolve():
        raise ConfigError(f"{folder} is the source itself: give another folder with --out")
    return folder


def _record_of(
    command: ImportCommand, source: Source, format_name: str, foreign: Foreign
) -> dict[str, Any]:
    """What a manifest keeps of an import, before anything is measured."""
    from saelab.formats.files import sha256_of

    undecisive = ("source", "out", "device", "overwrite")
    return {
        "format": format_name,
        "source": source.name,
        "files": {file.name: sha256_of(file) for file in foreign.files},
        "asked": {name: v for name, v in to_plain(command).items() if name not in undecisive},
        "conventions": dict(foreign.conventions),
        "reported": {
            name: value for name, value in foreign.origin.items() if name.startswith("reported_")
        },
        "notes": list(foreign.notes),
    }


def _is_kept(command: ImportCommand, source: Source, folder: Path, record: dict[str, Any]) -> bool:
    """Whether an earlier run of the same command has imported this dictionary already.

    Raises:
        ConfigError: another dictionary is there, or one of other settings.
    """
    from saelab.dictionary import load_dictionary
    from saelab.dictionary.storage import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE

    if command.overwrite:
        return False
    if not (folder / MANIFEST_FILE).exists():
        foreign = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (folder / name).exists()]
        if foreign and folder.resolve() != source.path.resolve():
            raise ConfigError(
                f"{folder} holds a {foreign[0]} that would be replaced: add --overwrite, or give "
                "another --out"
            )
        return False
    known = load_dictionary(folder).made_from.get("imported", {})
    if all(known.get(name) == record[name] for name in ("format", "files", "asked")):
        return True
    raise ConfigError(
        f"{folder} holds another dictionary, or one imported with other settings: add --overwrite "
        "to replace it, or give another --out"
    )


def _keep(
    command: ImportCommand,
    source: Source,
    foreign: Foreign,
    folder: Path,
    record: dict[str, Any],
    prover: _Prover,
) -> None:
    """Prove one dictionary and save it."""
    from saelab.dictionary.storage import save_dictionary

    site, made_from = _data_settings(command, foreign)
    dictionary = foreign.dictionary
    if command.processed_weights:
        from saelab.dictionary.importers.processed import on_raw_weights

        dictionary = on_raw_weights(dictionary, site, prover.model(made_from["model"]))
    if command.check:
        record["check"] = _check(source, record["format"], dictionary)
    if command.unproved:
        rows = _firing_rows(dictionary, 16)
        made_from["norm_ceiling"] = None
    else:
        proof, rows, proved_on = prover.prove(dictionary, site, made_from, foreign.origin)
        made_from |= proved_on
        record["measured"] = dict(proof.measured)
        record["disagreements"] = list(proof.disagreements)
        record["likely_cause"] = proof.likely_cause
    training = {
        "method": record["format"],
        "options": dict(foreign.origin.get("training", {})),
        "target_l0": dictionary.k or None,
    }
    save_dictionary(
        folder,
        dictionary.cpu(),
        self_test_inputs=rows.cpu(),
        training=training,
        made_from=made_from | {"imported": record},
        site=site,
        in_place=foreign.in_place and folder.resolve() == source.path.resolve(),
    )
    _report(folder, dictionary, site, record)


def _data_settings(command: ImportCommand, foreign: Foreign) -> tuple[Site, dict[str, Any]]:
    """Site and provenance from the source and the flags.

    Raises:
        ConfigError: what neither says, all at once.
    """
    from saelab.dictionary import Site

    model = command.model or foreign.model
    site = foreign.site
    if command.reads:
        site = Site(command.reads, command.writes or command.reads)
    context_length = command.context_length or foreign.origin.get("context_length") or 0
    asked = {
        "--model (the language model)": model,
        "--reads, --writes (its hook points)": site,
        "--text-source (text to judge it on)": command.text_source,
        "--context-length (tokens in a context)": context_length or None,
    }
    missing = [flag for flag, value in asked.items() if value is None]
    if missing or site is None:
        raise ConfigError(
            f"the source does not say everything that decides which rows it reads: give "
            f"{'; '.join(missing)}"
        )
    made_from = {
        "model": model,
        "model_hash": None,
        "hook_point": site.reads[0],
        "text": to_plain(_text(command)),
        "context_length": int(context_length),
        "prepend_bos": foreign.origin.get("prepend_bos"),
        "row_rule": to_plain(command.token_filter),
        "norm_ceiling": None,
        "model_dtype": command.model_dtype,
    }
    return site, made_from


def _text(command: ImportCommand) -> TextConfig:
    return TextConfig(
        source=command.text_source or "",
        text_field=command.text_field,
        held_out_fraction=command.held_out_fraction,
    )


class _Prover:
    """Proves the dictionaries of a source, on a model that is loaded once."""

    def __init__(self, command: ImportCommand):
        from saelab.model.language_model import load_language_model
        from saelab.text.contexts import describe_text

        self._command = command
        self._load, self._describe = cache(load_language_model), cache(describe_text)

    def model(self, name: str) -> LanguageModel:
        """The language model."""
        return self._load(name, dtype=self._command.model_dtype, device=self._command.device)

    def prove(
        self, dictionary: Dictionary, site: Site, made_from: dict[str, Any], origin: Mapping
    ) -> tuple[Proof, Any, dict[str, Any]]:
        """The proof, the rows it was made on, and what is recorded of the model they are from."""
        from saelab.dictionary.data_spec import DataSpec, require_width
        from saelab.dictionary.importers.proof import norm_ceilings, prove

        command = self._command
        dtype, text = command.model_dtype, _text(command)
        model = self.model(made_from["model"])
        require_width(model, site, dictionary, command.source)
        settings = (text, made_from["context_length"], command.token_filter)
        ceilings = norm_ceilings(model, site, *settings)
        spec = DataSpec(
            model=made_from["model"],
            model_hash=model.content_hash,
            model_dtype=dtype,
            site=site,
            text=text,
            context_length=made_from["context_length"],
            token_filter=command.token_filter,
            norm_ceilings=tuple(ceilings.values()),
        )
        proof, rows = prove(model, spec, dictionary.to(model.device), origin, command.n_tokens)
        recorded: dict[str, Any] = {
            "model_hash": model.content_hash,
            "text_hash": self._describe(text)["content_hash"],
            "norm_ceiling": ceilings[site.reads[0]],
        }
        if len(ceilings) > 1:
            recorded["norm_ceilings"] = ceilings
        return proof, rows, recorded


def _check(source: Source, format_name: str, dictionary: Dictionary) -> dict[str, float]:
    """Largest differences to the library it comes from, relative to its largest entry.

    Raises:
        ConfigError: the format has no such check, or the library is not installed.
    """
    from saelab.dictionary.importers import FORMATS

    reference = FORMATS[format_name].reference
    if reference is None:
        raise ConfigError(f"check: {FORMATS[format_name].title} cannot be run here; leave it away")
    x = _firing_rows(dictionary, 64)
    try:
        codes, reconstruction = reference(source, x)
    except ImportError as error:
        raise ConfigError(
            f"check: {error}: install the library of {FORMATS[format_name].title} beside saelab, "
            "or leave --check away"
        ) from None
    pairs = {
        "codes": (dictionary.encode_dense(x), codes),
        "reconstruction": (dictionary(x), reconstruction),
    }
    return {
        name: float((ours - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        for name, (ours, expected) in pairs.items()
    }


def _firing_rows(dictionary: Dictionary, n_rows: int) -> Float[Tensor, "rows d_in"]:
    """Random rows about the input bias, as large as it takes for latents to fire.

    The thresholds of a dictionary of raw activations can be far above what rows of unit variance
    reach, and where no latent fires, nothing would be compared.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_rows, dictionary.d_in, generator=generator)
    rows = noise
    for power in range(20):
        rows = dictionary.input_bias.cpu() + 2**power * noise
        if float(dictionary.encode(rows).l0().double().mean()) >= 1:
            break
    return rows


def _report(folder: Path, dictionary: Dictionary, site: Site, record: dict[str, Any]) -> None:
    """Say what was imported, how it was read, and whether it agrees with its authors."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    table.add_row(
        "dictionary", f"{dictionary.architecture}, {dictionary.d_sae:,} latents, at {site}"
    )
    for name, words in record_rows(record):
        table.add_row(name, words)
    console.print(table)
    for remark in record_remarks(record):
        console.print(remark)
    console.print(f"imported: {folder}")


def record_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a manifest's record of an import says: format, conventions, numbers beside reported."""
    rows = [("format", record["format"]), *record["conventions"].items()]
    for name, value in record.get("measured", {}).items():
        said = record["reported"].get(f"reported_{name}")
        rows.append((name, f"{value:.4g}" + ("" if said is None else f" (reported: {said:.4g})")))
    for name, value in record.get("check", {}).items():
        words = f"differ by {value:.1e} of the largest entry"
        rows.append((f"{name} against its library", words))
    return rows


def record_remarks(record: Mapping[str, Any]) -> list[str]:
    """Its notes and warnings, and the likely cause of a disagreement."""
    remarks = [f"note: {note}" for note in record["notes"]]
    remarks += [f"WARNING: {sentence}" for sentence in record.get("disagreements", ())]
    if record.get("disagreements"):
        cause = record["likely_cause"]
        remarks.append(
            f"Likely cause: {cause}" if cause else "None of the usual mistakes explains it."
        )
    if "measured" not in record:
        remarks.append("WARNING: not proved: nothing was measured (--unproved)")
    return remarks

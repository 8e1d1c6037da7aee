"""Kissane and Krzyzanowski's attention-output dictionaries: `<name>.pt` and `<name>_cfg.json`.

ReLU, b_dec subtracted, of GPT-2's `hook_z` with its heads side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from saelab.dictionary.site import Site

from .files import load_config, load_weights, peek_config, take
from .foreign import Foreign, Format, Source, build


def _config(path: Path) -> Path:
    return path.with_name(f"{path.stem}_cfg.json")


def _files(path: Path) -> list[Path]:
    files = [path] if path.suffix == ".pt" else []
    if path.is_dir():
        ending = "_cfg.json"
        configs = sorted(path.glob(f"*{ending}"))
        files = [path / f"{each.name.removesuffix(ending)}.pt" for each in configs]
    wanted = {"act_size", "dict_size", "act_name"}
    return [file for file in files if wanted <= peek_config(_config(file)).keys()]


def matches(path: Path) -> bool:
    """Whether a file lies beside one of their configs, or a folder holds some."""
    return bool(_files(path))


def read(source: Source) -> Iterator[Foreign]:
    """The dictionary of a file, or those of a folder."""
    files = _files(source.path)
    for path in files:
        config = load_config(_config(path))
        tensors = take(load_weights(path), path, "W_enc", "b_enc", "W_dec", "b_dec")
        yield Foreign(
            dictionary=build(path, "relu", **tensors),
            name=path.stem if len(files) > 1 else "",
            site=Site.of(config["act_name"]),
            model=config.get("model_name", "gpt2"),
            conventions={
                "input bias": "b_dec is subtracted",
                "selection": "ReLU",
                "hook point": "as recorded, heads side by side",
            },
            origin={"context_length": config.get("seq_len")},
            files=(path, _config(path)),
        )


FORMAT = Format("attention output (Kissane, Krzyzanowski)", matches, read)

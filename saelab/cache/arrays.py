"""Arrays in other people's files, block by block: what `saelab cache adopt` reads.

One `ForeignArray` for each array of a file, whatever its format: its shape is known at once, its
values come in blocks along the first axis, so that memory stays bounded whatever the size. Pickles
are never unpickled: `.pt` files are read as weights only, object arrays are refused.
"""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.errors import ActivationError, first_line

FORMATS = ".npy, .npz, .pt, .safetensors, .parquet, or a folder that `datasets` saved to disk"
HF_STATE = "state.json"
"""The file by which a folder is known as one that `datasets` (and with it SAELens) saved."""


@dataclass(frozen=True, kw_only=True)
class ForeignArray:
    """One array of a file."""

    file: Path
    """File or folder it is in, for messages."""
    files: tuple[Path, ...]
    """The files that its content is in."""
    name: str
    """Its name in the file; empty where the file is one array."""
    shape: tuple[int, ...]
    is_float: bool
    """Whether it holds floating-point numbers; if not, integers."""
    read: Callable[[int], Iterator[Tensor]]
    """Entries of a block -> blocks along the first axis; all but the last have that many."""

    def __str__(self) -> str:
        return f"{self.name!r} of {self.file}" if self.name else str(self.file)

    def blocks(self, entries: int) -> Iterator[Tensor]:
        """The content from the start, `entries` along the first axis at a time.

        Raises:
            ActivationError: the file is truncated or ragged; its row is named.
        """
        seen = 0
        for block in self.read(entries):
            if tuple(block.shape[1:]) != self.shape[1:]:
                raise ActivationError(
                    f"{self}: row {seen} has shape {list(block.shape[1:])}, row 0 has "
                    f"{list(self.shape[1:])}: all must be alike; pad or split them"
                )
            seen += len(block)
            yield block
        if seen != self.shape[0]:
            raise ActivationError(f"{self}: has {seen} of {self.shape[0]} rows: it is truncated")


def open_arrays(path: Path) -> list[ForeignArray]:
    """The arrays of numbers in a file, by name; nothing of their content is read.

    Raises:
        ActivationError: missing, of an unknown format, damaged, a pickle with code in it, or
            arrays of objects.
    """
    readers = {
        ".npy": _npy,
        ".npz": _npz,
        ".pt": _pt,
        ".pth": _pt,
        ".safetensors": _safetensors,
        ".parquet": _parquet,
    }
    if path.is_dir() and (path / HF_STATE).is_file():
        read: Any = _hf_folder
    elif path.is_file() and path.suffix.lower() in readers:
        read = readers[path.suffix.lower()]
    else:
        state = "is not a file of activations" if path.exists() else "does not exist"
        raise ActivationError(f"{path} {state}: give {FORMATS}")
    try:
        return list(read(path))
    except ActivationError:
        raise
    except pickle.UnpicklingError:
        raise ActivationError(
            f"{path} holds pickled code or objects beside tensors, which are not run: save the "
            "tensors alone, with torch.save of a tensor or a dict of tensors"
        ) from None
    except Exception as error:  # Each format's library has errors of its own.
        raise ActivationError(f"{path} cannot be read ({first_line(error)[:200]})") from None


def _from_slices(
    path: Path,
    name: str,
    shape: Iterable[int],
    dtype: str,
    opened: Callable[[], Any],
) -> ForeignArray:
    """An array of which any part can be read; `opened` maps it, so that no file stays open."""
    lengths = tuple(int(length) for length in shape)

    def read(entries: int) -> Iterator[Tensor]:
        array = opened()
        for start in range(0, lengths[0], entries):
            part = array[start : min(start + entries, lengths[0])]
            yield torch.from_numpy(_native(part)) if isinstance(part, np.ndarray) else part

    return ForeignArray(
        file=path,
        files=(path,),
        name=name,
        shape=lengths,
        is_float=_is_float(path, name, dtype),
        read=read,
    )


def _is_float(path: Path, name: str, dtype: str) -> bool:
    """Whether a dtype, as text, is of floating-point numbers.

    Raises:
        ActivationError: it is neither of these nor of integers.
    """
    short = dtype.removeprefix("torch.").lower()
    if short in ("float16", "bfloat16", "float32", "float64", "f16", "bf16", "f32", "f64"):
        return True
    if short in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64") or (
        short in ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64")
    ):
        return False
    held = f"{name!r} of {path}" if name else str(path)
    raise ActivationError(
        f"{held} is an array of {dtype}: activations are float16, bfloat16, float32 or float64; "
        "convert it"
    )


def _npy(path: Path) -> Iterator[ForeignArray]:
    def opened() -> Any:
        return np.load(path, mmap_mode="r", allow_pickle=False)

    array = opened()
    if array.ndim:
        yield _from_slices(path, "", array.shape, str(array.dtype.newbyteorder("=")), opened)


def _native(array: np.ndarray) -> np.ndarray:
    """A copy, which may be written to, in this machine's byte order and of a dtype torch has."""
    native = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    if native.dtype.kind == "u" and native.dtype.itemsize > 1:
        native = native.astype(np.int64)
    return native


def _npz(path: Path) -> Iterator[ForeignArray]:
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        for member in members:
            with archive.open(member) as handle:
                shape, fortran, dtype = _npy_header(handle)
            if dtype.hasobject:
                raise ActivationError(
                    f"{member.removesuffix('.npy')!r} of {path} is an array of Python objects: "
                    "save it as an array of numbers"
                )
            if fortran and len(shape) > 1:
                raise ActivationError(
                    f"{member.removesuffix('.npy')!r} of {path} is stored column by column, so its "
                    "rows cannot be read one by one: save numpy.ascontiguousarray of it"
                )
            if shape:
                yield _npz_array(path, member, shape, dtype)


def _npz_array(path: Path, member: str, shape: tuple[int, ...], dtype: np.dtype) -> ForeignArray:
    """An array in a zip file, which may be compressed: it can only be read from its start."""
    name = member.removesuffix(".npy")

    def read(entries: int) -> Iterator[Tensor]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as handle:
            _npy_header(handle)
            entry_bytes = dtype.itemsize * math.prod(shape[1:])
            for start in range(0, shape[0], entries):
                count = min(entries, shape[0] - start)
                content = handle.read(count * entry_bytes)
                if len(content) < count * entry_bytes:
                    return
                array = np.frombuffer(content, dtype).reshape(count, *shape[1:])
                yield torch.from_numpy(_native(array))

    return ForeignArray(
        file=path,
        files=(path,),
        name=name,
        shape=shape,
        is_float=_is_float(path, name, str(dtype.newbyteorder("="))),
        read=read,
    )


def _npy_header(handle: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(handle)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(handle)
    return np.lib.format.read_array_header_2_0(handle)


def _pt(path: Path) -> Iterator[ForeignArray]:
    def opened() -> Any:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)

    if not zipfile.is_zipfile(path):
        raise ActivationError(
            f"{path} is a bare pickle or of torch before 1.6, which cannot be read without running "
            "code that may be in it: save it again with torch.save"
        )
    content = opened()
    tensors = {"": content} if isinstance(content, Tensor) else content
    if isinstance(tensors, list | tuple):
        raise ActivationError(
            f"{path} holds a list of {len(tensors)} entries: join them to one tensor [rows, d_in] "
            "or [contexts, positions, d_in], or save one file each"
        )
    if not isinstance(tensors, dict):
        raise ActivationError(
            f"{path} holds a {type(content).__name__}: a tensor or a dict of tensors was expected"
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ActivationError(
                f"{name!r} of {path} is a {type(tensor).__name__}: a tensor was expected; save the "
                "tensors alone"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ActivationError(f"{name!r} of {path} is sparse or quantised: make it dense")
        if tensor.ndim:
            mapped = (
                (lambda: opened().detach())
                if tensor is content
                else (lambda name=name: opened()[name].detach())
            )
            yield _from_slices(path, str(name), tensor.shape, str(tensor.dtype), mapped)


def _safetensors(path: Path) -> Iterator[ForeignArray]:
    from safetensors import safe_open

    def opened(name: str) -> Any:
        return safe_open(str(path), framework="pt").get_slice(name)

    with safe_open(str(path), framework="pt") as handle:
        names = list(handle.keys())
    for name in names:
        part = opened(name)
        shape, dtype = part.get_shape(), part.get_dtype()
        if shape:
            yield _from_slices(path, name, shape, dtype, lambda name=name: opened(name))


def _parquet(path: Path) -> Iterator[ForeignArray]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)

    def batches(name: str, entries: int) -> Iterator[Any]:
        opened = parquet.ParquetFile(path)
        for batch in opened.iter_batches(batch_size=entries, columns=[name]):
            yield batch.column(0)

    for field in file.schema_arrow:
        yield from _column(path, (path,), field, file.metadata.num_rows, batches)


def _hf_folder(path: Path) -> Iterator[ForeignArray]:
    """Columns of a dataset on disk, read without the library: Arrow files that are mapped."""
    import pyarrow

    state = json.loads((path / HF_STATE).read_text(encoding="utf-8"))
    if state.get("_indices_files"):
        raise ActivationError(
            f"{path} is a selection of a dataset's rows: save `dataset.flatten_indices()` instead"
        )
    files = tuple(path / Path(entry["filename"]).name for entry in state["_data_files"])

    def tables() -> Iterator[Any]:
        for file in files:
            with pyarrow.memory_map(str(file)) as source:
                yield from pyarrow.ipc.open_stream(source)

    def batches(name: str, entries: int) -> Iterator[Any]:
        for batch in tables():
            column = batch.column(batch.schema.get_field_index(name))
            for start in range(0, len(column), entries):
                yield column[start : start + entries]

    first = next(tables(), None)
    n_rows = sum(batch.num_rows for batch in tables())
    for field in () if first is None else first.schema:
        yield from _column(path, files, field, n_rows, batches)


def _column(
    path: Path,
    files: tuple[Path, ...],
    field: Any,
    n_rows: int,
    batches: Callable[[str, int], Iterator[Any]],
) -> Iterator[ForeignArray]:
    """A column as an array if it is one of numbers, alone or in lists of lists."""
    import pyarrow

    kind, depth = _storage(field.type), 0
    while pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind) or _is_fixed(kind):
        kind, depth = _storage(kind.value_type), depth + 1
    if not (pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind)):
        return
    origin = f"{field.name!r} of {path}"
    first = next(batches(field.name, 1), None)
    if first is None or len(first) == 0:
        return

    def read(entries: int) -> Iterator[Tensor]:
        row, held = 0, []
        for column in batches(field.name, entries):
            held.append(_dense(column, depth, origin, row))
            row += len(column)
            # Arrow's batches end where its files say; blocks of several arrays must be equal.
            while sum(map(len, held)) >= entries:
                joined = np.concatenate(held) if len(held) > 1 else held[0]
                yield torch.from_numpy(_native(joined[:entries]))
                held = [joined[entries:]]
        rest = [part for part in held if len(part)]
        if rest:
            yield torch.from_numpy(_native(np.concatenate(rest)))

    yield ForeignArray(
        file=path,
        files=files,
        name=field.name,
        shape=(n_rows, *_dense(first[:1], depth, origin, 0).shape[1:]),
        is_float=pyarrow.types.is_floating(kind),
        read=read,
    )


def _is_fixed(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_fixed_size_list(kind)


def _storage(kind: Any) -> Any:
    """What an extension type, such as `datasets`' Array2D, is stored as."""
    return kind.storage_type if hasattr(kind, "storage_type") else kind


def _dense(column: Any, depth: int, origin: str, first_row: int) -> np.ndarray:
    """Nested lists as an array.

    Raises:
        ActivationError: lists of different lengths or missing values; the row is named.
    """
    from pyarrow import compute

    kernels: Any = compute
    shape = [len(column)]
    for _ in range(depth):
        column = getattr(column, "storage", column)
        _require_no_null(column, shape, origin, first_row)
        lengths = kernels.list_value_length(column).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[:1])
        if len(odd):
            row = first_row + int(odd[0]) // math.prod(shape[1:])
            raise ActivationError(
                f"{origin}: row {row} has {int(lengths[odd[0]])} entries where others have "
                f"{int(lengths[0])}: it is ragged; pad or split it"
            )
        column = column.flatten()
        shape.append(int(lengths[0]) if len(lengths) else 0)
    _require_no_null(column, shape, origin, first_row)
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def _require_no_null(column: Any, shape: list[int], origin: str, first_row: int) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        row = first_row + row // math.prod(shape[1:])
        raise ActivationError(f"{origin}: row {row} holds a missing value (null)")

"""The file of `saelab compare`: an evaluation result of many dictionaries, with more for machines.

It has every field of an evaluation result, so that the page and the dashboard draw it as any other,
and beside them the numbers by dictionary and by row that its tables show as text.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from saelab.config import to_plain
from saelab.errors import ArtifactError

from .evaluation_result import PAGE_FIELDS, EvaluationResult, check_evaluation_result
from .manifest import new_manifest, read_manifest, require_fields, write_manifest

COMPARISON_KIND = "comparison"
COMPARISON_FILE = "compare.json"


def write_comparison(path: Path, result: EvaluationResult, more: dict[str, Any]) -> None:
    """Write a comparison, atomically.

    Args:
        path: where.
        result: what is shown.
        more: numbers for machines: definitions, dictionaries, rows.

    Raises:
        ArtifactError: a number is NaN or infinite.
    """
    content = new_manifest(
        COMPARISON_KIND,
        seed=None,
        config=result.settings,
        made_from=result.made_from,
    ) | {
        "suite": result.suite,
        "dictionary": {"name": result.dictionary_name, "hash": result.dictionary_hash},
        "settings": result.settings,
        "metrics": [asdict(metric) for metric in result.metrics],
        **{name: to_plain(getattr(result, name)) for name in PAGE_FIELDS},
        "item_files": result.item_files,
        **more,
    }
    check_evaluation_result(content, path)
    write_manifest(path, content)


def read_comparison(path: Path) -> tuple[EvaluationResult, dict[str, Any]]:
    """Read and check a comparison: what is shown, and the file's whole content.

    Raises:
        ArtifactError: missing, damaged, of another kind, from a newer saelab, or from one that
            stored no charts.
    """
    content = read_manifest(path, COMPARISON_KIND)
    if content["schema_version"] == 1:
        raise ArtifactError(
            f"{path} was written by an older saelab, which stored no charts: make it again with "
            f"`saelab compare RUN … --out {path.parent}`, which uses the evaluations that are there"
        )
    needed = {"dictionaries": list, "definitions": dict, "rows": list, "charts": list}
    require_fields(content, needed, path)
    for index, row in enumerate(content["rows"]):
        require_fields({f"row {index}": row}, {f"row {index}": dict}, path)
        require_fields(row, {"label": str, "d_sae": int, "seeds": list, "values": dict}, path)
    return check_evaluation_result(content, path), content

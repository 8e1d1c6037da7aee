"""The features of saved dictionaries over HTTP: what `saelab serve` answers.

Routes of our own are GET alone. Those under `/api` have the shapes of Neuronpedia's, so that
scripts written for it work when they are given this address. Everything is named by this folder's
index: no text of an address is ever joined to a path.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from saelab.errors import ConfigError, SaelabError, did_you_mean, shown
from saelab.explain.meaning import (
    MEANING_FILE,
    likeness_of_examples,
    likeness_of_explanations,
)
from saelab.features.label_content import Label, one_each, prominence
from saelab.features.lists import shelf_of
from saelab.features.reader import FeatureStore
from saelab.features.schema import FLAGS
from saelab.features.unpacking import split_tokens
from saelab.live.reading import feature_use

from .live_session import MAX_TOKENS, open_session
from .run_index import DictionaryEntry, RunIndex, neuronpedia_addresses, scan
from .stores import labels_of, open_store
from .widgets.cards import feature_card, list_html
from .widgets.feature_html import feature_json, html_file
from .widgets.feature_table import BEST_MATCH, SORTS, FeatureFilter, select_features
from .widgets.html_tables import page_table

if TYPE_CHECKING:
    from saelab.live.edits import FeatureEdit
    from saelab.live.session import LiveSession

SECONDS_BETWEEN_SCANS = 5
MOST_CHARACTERS, MOST_WRITTEN, MOST_EDITS, MOST_ROWS = 4000, 200, 8, 1000
Text = Annotated[str, Query(min_length=1, max_length=MOST_CHARACTERS)]
router = APIRouter()


@dataclass(frozen=True)
class ServedDictionary:
    """A dictionary that an address names, with its store."""

    entry: DictionaryEntry
    store: FeatureStore
    keys: dict[str, str]
    """`modelId` and `layer`, as Neuronpedia has them."""

    @property
    def labels(self) -> Sequence[Label]:
        """Everything said of its features, what counts most first."""
        return sorted(labels_of(self.store), key=prominence, reverse=True)

    @property
    def session(self) -> LiveSession:
        """The dictionary with its model, loaded on first use."""
        return open_session(self.entry, self.store)

    def of(self, feature: int) -> list[Label]:
        """What is said of a feature, which must be one."""
        if not 0 <= feature < self.store.n_features:
            raise HTTPException(404, f"there are features 0 to {self.store.n_features - 1}")
        return [label for label in self.labels if label.feature == feature]


class Catalogue:
    """What lies under the folders given, looked for again every few seconds."""

    def __init__(self, roots: Sequence[Path]):
        self.roots = tuple(roots)
        self._lock, self._read, self._index = Lock(), -np.inf, scan(self.roots)

    @property
    def index(self) -> RunIndex:
        """The runs and dictionaries there are now."""
        with self._lock:
            if time.monotonic() - self._read > SECONDS_BETWEEN_SCANS:
                self._index, self._read = scan(self.roots), time.monotonic()
            return self._index

    def dictionary(self, model: str, source: str) -> ServedDictionary:
        """The dictionary of an address; 404 where there is none, or no store."""
        entry = neuronpedia_addresses(self.index).get((model, source))
        if entry is None or entry.store_path is None:
            raise HTTPException(
                404, f"no dictionary {model}/{source} with a feature store: GET /dictionaries"
            )
        keys = {"modelId": model, "layer": source}
        return ServedDictionary(entry, open_store(entry.store_path), keys)


def _catalogue(request: Request) -> Catalogue:
    return request.app.state.catalogue


Catalogued = Annotated[Catalogue, Depends(_catalogue)]


def _dictionary(catalogue: Catalogued, model: str, source: str) -> ServedDictionary:
    return catalogue.dictionary(model, source)


Served = Annotated[ServedDictionary, Depends(_dictionary)]


@router.get("/", response_class=HTMLResponse)
def routes(request: Request) -> str:
    """This page: what can be asked."""
    rows = [
        [f"{method.upper()} {path}", operation.get("description", "").split("\n")[0]]
        for path, methods in request.app.openapi()["paths"].items()
        for method, operation in methods.items()
    ]
    table = page_table("What can be asked; /openapi.json says it in full", ["route", "is"], rows)
    return html_file("saelab serve", f"<h1>saelab serve</h1>{table}")


@router.get("/dictionaries")
def dictionaries(catalogue: Catalogued) -> list[dict[str, Any]]:
    """The dictionaries, by model and source."""
    return [
        {
            "model": model,
            "source": source,
            "run": entry.run_id,
            "name": entry.name,
            "hook_point": entry.hook_point,
            "content_hash": entry.content_hash,
            "has_features": entry.store_path is not None,
            **entry.facts,
        }
        for (model, source), entry in neuronpedia_addresses(catalogue.index).items()
    ]


@router.get("/dictionaries/{model}/{source}/features")
def features(
    served: Served,
    query: str = "",
    by: Literal["words", "explanations", "examples"] = "words",
    sort: str = BEST_MATCH,
    descending: bool = False,
    start: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50,
) -> dict[str, Any]:
    """Features, searched by words or by meaning as on the page Explore.

    `query` is in the language of the dashboard's search box; `by` explanations or examples looks
    for what means something alike. The first search by examples reads every feature.
    """
    if sort not in (BEST_MATCH, *SORTS):
        raise ConfigError(f"sort {sort!r} is unknown; {did_you_mean(sort, (BEST_MATCH, *SORTS))}")
    store, labels = served.store, one_each(served.labels)
    likeness = None
    if query.strip() and by != "words":
        likeness = _likeness(served, query, by)
    wanted = FeatureFilter(query=query, sort=sort, descending=descending)
    texts = {feature: label.text for feature, label in labels.items()}
    chosen, matched = select_features(store, texts, wanted, likeness=likeness)
    listed = chosen[start : start + limit].tolist()
    rows = [{**_row(store, feature), "label": texts.get(feature)} for feature in listed]
    if matched:
        for row in rows:
            at = row["index"]
            row |= {"found_in": matched(at)} if likeness is None else {"likeness": likeness[at]}
    return {"total": len(chosen), "start": start, "features": rows}


def _likeness(served: ServedDictionary, query: str, by: str) -> dict[int, float]:
    path = served.store.path.with_name(MEANING_FILE)
    if by == "examples":
        return likeness_of_examples(path, served.store, query)
    return likeness_of_explanations(path, served.labels, query)


def _row(store: FeatureStore, feature: int) -> dict[str, Any]:
    table = store.table()
    flags = int(table["flags"][feature])
    return {
        "index": feature,
        "density": _number(table["density"][feature]),
        "max_activation": _number(table["max_act"][feature]),
        "n_active": int(table["n_active"][feature]),
        "top_tokens": list(split_tokens(table["top_tokens"][feature])),
        "promoted_tokens": list(split_tokens(table["promoted_tokens"][feature])),
        "flags": [name for name, bit in FLAGS.items() if flags & bit],
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


@router.get("/dictionaries/{model}/{source}/features/{index}")
def feature_of(served: Served, index: int) -> Response:
    """Everything about a feature, as the dashboard's page shows it."""
    labels = served.of(index)
    content = feature_json(served.entry.name, served.store, index, labels)
    return Response(content, media_type="application/json")


@router.get("/dictionaries/{model}/{source}/activations")
def activations(
    served: Served, text: Text, limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 50
) -> dict[str, Any]:
    """The features active on a text, the largest activation first, with values at every token."""
    reading = served.session.read(text, MAX_TOKENS)
    use = feature_use(reading)
    order = np.argsort(-use.peak, kind="stable")[:limit]
    return {
        "tokens": reading.tokens,
        "counted": reading.counted.tolist(),
        "tokens_cut": reading.n_cut,
        "n_features": len(use.latent),
        "features": [
            {
                "index": int(use.latent[place]),
                "peak": float(use.peak[place]),
                "peak_position": int(use.peak_position[place]),
                "values": reading.track(int(use.latent[place])),
            }
            for place in order.tolist()
        ],
    }


@router.get("/dictionaries/{model}/{source}/steer")
def steer(
    served: Served,
    text: Text,
    edit: Annotated[list[str], Query(min_length=1, max_length=MOST_EDITS)],
    tokens: Annotated[int, Query(ge=1, le=MOST_WRITTEN)] = 40,
    temperature: Annotated[float, Query(ge=0, le=2)] = 0.8,
    seed: Annotated[int, Query(ge=0)] = 0,
) -> dict[str, Any]:
    """A text continued as the model would and with features edited, with the same random numbers.

    `edit` is `feature:kind:strength`, as in `12:add:2`, up to eight times; kinds are add, clamp and
    ablate, strengths multiples of the feature's maximum.
    """
    edits = [_edit(words, served.store) for words in edit]
    (baseline, steered), shift = steered_texts(
        served.session, edits, text, tokens=tokens, temperature=temperature, seed=seed
    )
    return {"baseline": baseline, "steered": steered, "kl_of_next_token": shift}


def _edit(words: str, store: FeatureStore) -> FeatureEdit:
    from saelab.live.edits import FeatureEdit, Kind

    feature, _, rest = words.partition(":")
    kind, _, strength = rest.partition(":")
    known = next((each for each in get_args(Kind) if each == kind), None)
    try:
        index, times = int(feature), float(strength or 1)
    except ValueError:
        known, index, times = None, 0, 0.0
    if known is None:
        raise ConfigError(
            f"edit {shown(words)}: expected feature:kind:strength, as 12:add:2, with add, clamp or "
            "ablate"
        )
    if not 0 <= index < store.n_features:
        raise ConfigError(f"feature {index} does not exist: there are 0 to {store.n_features - 1}")
    maximum = float(np.nan_to_num(store.table()["max_act"][index]))
    return FeatureEdit(feature=index, kind=known, strength=times, maximum=maximum)


def steered_texts(
    session: LiveSession,
    edits: Sequence[FeatureEdit],
    text: str,
    *,
    tokens: int,
    temperature: float,
    seed: int,
) -> tuple[tuple[str, str], float]:
    """What is written without and with the edits, and the KL of the next token in nats."""
    from saelab.live.edits import next_token_shift
    from saelab.live.session import BASELINE, STEERED

    written: dict[int, list[int]] = {BASELINE: [], STEERED: []}
    shift = None
    for step in session.steer(
        text, edits, n_tokens=tokens, temperature=temperature, seed=seed, max_tokens=MAX_TOKENS
    ):
        shift = shift or next_token_shift(step.logits[BASELINE], step.logits[STEERED])
        for version, ids in written.items():
            if not bool(step.finished[version]):
                ids.append(int(step.tokens[version]))
    assert shift is not None
    baseline, steered = (session.model.text_of(ids) for ids in written.values())
    return (baseline, steered), shift.kl


@router.get("/lists")
def lists(catalogue: Catalogued) -> dict[str, Any]:
    """The lists of features."""
    shelved, problems = shelf_of(catalogue.roots).all()
    known = [
        {"id": each.id, "name": each.name, "features": len(each.features), "sha256": each.sha256}
        for each in shelved
    ]
    return {"lists": known, "problems": problems}


@router.get("/lists/{list_id}")
def list_of(catalogue: Catalogued, list_id: str) -> Response:
    """A list, as its file has it."""
    content = shelf_of(catalogue.roots).exported(list_id)
    return Response(content, media_type="application/json")


@router.get("/embed/lists/{list_id}", response_class=HTMLResponse)
def embed_list(catalogue: Catalogued, list_id: str) -> str:
    """A list as a page without scripts, to be shown in a frame."""
    return list_html(shelf_of(catalogue.roots).of(list_id), catalogue.index)


@router.get("/embed/{model}/{source}/{index}", response_class=HTMLResponse)
def embed_feature(served: Served, index: int) -> str:
    """A feature as a small page without scripts, to be shown in a frame."""
    card = feature_card(served.entry.name, served.store, index, served.of(index))
    return html_file(f"{served.entry.name} · feature {index}", card)


def make_app(roots: Sequence[Path]) -> FastAPI:
    """The application of these folders; who may ask is for the caller to say."""
    from .neuronpedia_api import router as neuronpedia_router

    app = FastAPI(
        title="saelab", description=__doc__ or "", docs_url=None, redoc_url=None, version="1"
    )
    app.state.catalogue = Catalogue(roots)
    app.include_router(router)
    app.include_router(neuronpedia_router)

    @app.exception_handler(SaelabError)
    def say(_: Request, error: SaelabError) -> JSONResponse:
        status = 400 if isinstance(error, ConfigError) else 500
        return JSONResponse({"detail": str(error)}, status)

    return app

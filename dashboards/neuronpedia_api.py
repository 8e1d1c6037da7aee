"""Neuronpedia's public routes over our own dictionaries, for scripts written for it.

What a request asks for and we do not do is refused, never left out in silence. Names of fields are
Neuronpedia's.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, Field

from saelab.explain.meaning import MEANING_FILE, likeness_of_explanations
from saelab.features.neuronpedia import feature_as_served
from saelab.live.reading import Reading, feature_use

from .api import (
    MOST_CHARACTERS,
    MOST_EDITS,
    MOST_WRITTEN,
    Catalogued,
    Served,
    ServedDictionary,
    steered_texts,
)
from .live_session import MAX_TOKENS

router = APIRouter(prefix="/api")
MOST_RESULTS = 100


class NamedFeature(BaseModel):
    """A feature as requests name it; `source` and `layer` are the same."""

    modelId: str
    source: str | None = None
    layer: str | None = None
    index: int


class NewActivation(BaseModel):
    """A feature and a text, or several."""

    feature: NamedFeature
    customText: str | list[str]


class SearchAll(BaseModel):
    """A text whose strongest features are asked for."""

    modelId: str
    sourceSet: str
    text: str = Field(max_length=MOST_CHARACTERS)
    selectedLayers: list[str] = []
    sortIndexes: list[int] = []
    ignoreBos: bool = True
    densityThreshold: float = -1
    numResults: int = Field(50, ge=1, le=MOST_RESULTS)


class SearchedExplanation(BaseModel):
    """Words whose meaning explanations are searched for."""

    modelId: str
    layers: list[str]
    query: str = Field(min_length=1, max_length=MOST_CHARACTERS)


class SteeredFeature(BaseModel):
    """A feature with its strength, in activations of the feature."""

    modelId: str
    layer: str
    index: int
    strength: float


class SteerRequest(BaseModel):
    """A prompt to be continued with and without features added."""

    prompt: str = Field(min_length=1, max_length=MOST_CHARACTERS)
    modelId: str
    features: list[SteeredFeature] = Field(min_length=1, max_length=MOST_EDITS)
    temperature: float = Field(ge=0, le=2)
    n_tokens: int = Field(ge=1, le=MOST_WRITTEN)
    freq_penalty: Literal[0] = 0
    seed: int = Field(ge=0)
    strength_multiplier: float = Field(1, ge=0)
    steer_method: Literal["SIMPLE_ADDITIVE"] = "SIMPLE_ADDITIVE"
    stream: Literal[False] = False


@router.get("/feature/{model}/{source}/{index}")
def feature(served: Served, index: int) -> dict[str, Any]:
    """A feature with its activations and explanations; its decoder row is left out."""
    return feature_as_served(served.store, index, served.of(index), served.keys)


@router.post("/activation/new")
def activation(catalogue: Catalogued, asked: NewActivation) -> Any:
    """One feature's activations on a text, or on each of several."""
    named = asked.feature
    served = catalogue.dictionary(named.modelId, named.source or named.layer or "")
    served.of(named.index)

    def on(text: str) -> dict[str, Any]:
        reading = served.session.read(text, MAX_TOKENS)
        return {"tokens": reading.tokens, **_values(served, reading, named.index)}

    texts = asked.customText
    return on(texts) if isinstance(texts, str) else [on(text) for text in texts]


def _values(served: ServedDictionary, reading: Reading, index: int) -> dict[str, Any]:
    values = reading.track(index)
    place = int(np.argmax(values))
    return {
        **served.keys,
        "index": str(index),
        "values": values,
        "maxValue": values[place],
        "minValue": min(values),
        "maxValueTokenIndex": place,
        "maxValueIndex": place,
    }


@router.post("/search-all")
def search_all(catalogue: Catalogued, asked: SearchAll) -> dict[str, Any]:
    """The strongest features of a text; those of one dictionary, whose tokens they share."""
    sources = asked.selectedLayers or [asked.sourceSet]
    if len(sources) != 1:
        raise HTTPException(400, "one dictionary is searched at a time: name it in selectedLayers")
    served = catalogue.dictionary(asked.modelId, sources[0])
    reading = served.session.read(asked.text, MAX_TOKENS)
    use, density = feature_use(reading), np.nan_to_num(served.store.table()["density"])
    score = use.peak
    if asked.sortIndexes:
        wanted = np.isin(reading.position, asked.sortIndexes)
        sums = np.bincount(reading.latent[wanted], reading.value[wanted], served.store.n_features)
        score = sums[use.latent]
    kept = score > 0
    if asked.densityThreshold != -1:
        kept &= density[use.latent] <= asked.densityThreshold
    order = np.argsort(-score, kind="stable")
    chosen = use.latent[order[kept[order]]][: asked.numResults].tolist()
    return {
        "tokens": reading.tokens,
        "result": [_values(served, reading, index) for index in chosen],
        "counts": [np.bincount(reading.position, minlength=len(reading.ids)).tolist()],
        "sortIndexes": asked.sortIndexes,
    }


@router.post("/explanation/search")
def explanations(catalogue: Catalogued, asked: SearchedExplanation) -> dict[str, Any]:
    """The features whose explanations mean something alike, the most alike first."""
    results = []
    for source in asked.layers:
        served = catalogue.dictionary(asked.modelId, source)
        labels = served.labels
        path = served.store.path.with_name(MEANING_FILE)
        likeness = likeness_of_explanations(path, labels, asked.query)
        best = sorted(likeness, key=lambda index: -likeness[index])[:MOST_RESULTS]
        texts = {label.feature: label.text for label in reversed(labels)}
        results += [
            {
                **served.keys,
                "index": str(index),
                "description": texts[index],
                "cosine_similarity": likeness[index],
            }
            for index in best
        ]
    results.sort(key=lambda result: -result["cosine_similarity"])
    return {"request": asked.model_dump(), "results": results[:MOST_RESULTS]}


@router.post("/steer")
def steer(catalogue: Catalogued, asked: SteerRequest) -> dict[str, Any]:
    """A prompt continued with and without features added, at the strengths given."""
    from saelab.live.edits import FeatureEdit

    sources = {(each.modelId, each.layer) for each in asked.features}
    if len(sources) != 1:
        raise HTTPException(400, "features of one dictionary are steered together")
    served = catalogue.dictionary(*sources.pop())
    edits = [
        FeatureEdit(
            feature=each.index,
            kind="add",
            strength=each.strength * asked.strength_multiplier,
            maximum=1.0,
        )
        for each in asked.features
    ]
    (baseline, steered), _ = steered_texts(
        served.session,
        edits,
        asked.prompt,
        tokens=asked.n_tokens,
        temperature=asked.temperature,
        seed=asked.seed,
    )
    return {"STEERED": asked.prompt + steered, "DEFAULT": asked.prompt + baseline}

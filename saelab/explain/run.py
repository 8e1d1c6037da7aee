"""Explaining the features of one dictionary: which, by what, at what cost, and what came of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from saelab.config import to_plain
from saelab.errors import ArtifactError, ConfigError, ModelError, Stopped
from saelab.features.label_content import TOO_WEAK, LabelContent, Score
from saelab.features.labels import LabelBook
from saelab.features.reader import FeatureStore, is_stale
from saelab.features.schema import LABEL_FILE
from saelab.formats.lock import writer_lock
from saelab.interrupts import StopRequest, stop_on_signals
from saelab.progress import progress_bar

from .answers import ANSWER_FILE, AnswerBook, Asker, Tally
from .config import ExplainConfig, ModelOptions
from .endpoint import Answerer, Endpoint
from .evidence import Evidence, gather, in_fixed_order
from .judge import Judge
from .local import EMBEDDED, LocalModel
from .prompts import prompts_hash
from .scores import judged, ranking, score_of
from .token_context import explanation_of, explanations

if TYPE_CHECKING:
    from .intervention import Steering

logger = logging.getLogger(__name__)

METHOD = "language-model"
EXPLAINS_NOTHING = "assorted tokens in various kinds of text"
"""The control that any explanation has to beat."""
BEGINNINGS = (
    "The",
    "I think that",
    "On the next morning",
    "In this article we",
    "She looked at him and",
    "It is well known that",
    "First of all,",
    "My favourite",
)
"""What is written on with a feature boosted."""
PATIENCE = 10
"""Features without an explanation, of the first ones, after which a model is given up."""
BETWEEN_WRITES = 50
"""Explanations that are written at once."""

_ONE_AT_A_TIME = threading.Lock()
"""Neither tokenizers of sentence encoders nor texts being written are made for threads."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Summary:
    """What became of a run."""

    chosen: int
    """Features that were to be explained."""
    explanations: tuple[LabelContent, ...]
    """Of those that were."""
    without_examples: int = 0
    """Features with no example to show."""
    tally: Tally = field(default_factory=Tally)
    """What the language model was asked."""

    def scores_named(self, name: str) -> list[Score]:
        """A score of every explanation that has it."""
        scores = (explanation.score_named(name) for explanation in self.explanations)
        return [score for score in scores if score is not None]


def answering(options: ModelOptions) -> AbstractContextManager[Answerer]:
    """The language model that is asked: an endpoint, or a model run here.

    Raises:
        EndpointError: nothing answers, the key is refused, or the model is not named.
        ModelError: no such model, or none that can be asked.
    """
    if options.endpoint is None:
        assert options.model is not None
        return nullcontext(
            LocalModel(options.model, dtype=options.model_dtype, device=options.device)
        )
    return Endpoint(
        options.endpoint,
        options.model,
        key_variable=options.key_variable,
        concurrency=options.concurrency,
        requests_per_minute=options.requests_per_minute,
        time_limit=options.time_limit,
        retries=options.retries,
    )


def explain_dictionary(
    folder: Path, config: ExplainConfig, model: Answerer | None = None
) -> Summary:
    """Explain features from the store beside a dictionary; explanations go to its label file.

    Args:
        folder: the dictionary's, with its `features.sqlite`.
        config: settings.
        model: the language model to ask; None: the one that the settings name, if any.

    Raises:
        ArtifactError: no store, one of another dictionary, or one without examples.
        ConfigError: features that are not there.
        EndpointError: an endpoint that gives no answers; what it gave is kept.
        ModelError: a model that refuses, or answers in no readable form.
        Stopped: a signal asked to stop; every answer is kept.
    """
    if model is None and config.asks_a_model:
        with answering(config.asked) as model:
            return explain_dictionary(folder, config, model)
    with opened(folder) as store, writer_lock(folder / ANSWER_FILE):
        features = chosen_features(store, config)
        book = LabelBook(
            folder / LABEL_FILE, store.manifest["made_from"]["dictionary_hash"], store.n_features
        )
        if model is None:
            contents = explanations(store, features, config.evidence, config.seed)
            written = _written(contents, book, len(features), "explaining")
            if not written:
                raise _no_examples(store)
            return Summary(len(features), tuple(written), len(features) - len(written))
        with stop_on_signals() as stop, AnswerBook(folder / ANSWER_FILE) as answers:
            ask = Asker(model, answers, stop)
            texts, without = _texts(store, config, features, ask, model.concurrency, stop)
            boosts = "intervention" in config.scores
            steering = _steering(folder, store, config) if boosts else None
            about = (store, config, ask, texts, _controls(config, texts), steering)
            results = _in_parallel(
                partial(_explained, *about), list(texts), model.concurrency, stop
            )
            written = _written(results, book, len(texts), "scoring")
            return Summary(len(features), tuple(written), without, ask.tally)


@contextmanager
def opened(folder: Path) -> Iterator[FeatureStore]:
    """The feature store of a dictionary, which it has to be of."""
    with FeatureStore(folder) as store:
        stale = is_stale(store, folder)
        if stale is not None:
            raise ArtifactError(stale)
        yield store


def chosen_features(store: FeatureStore, config: ExplainConfig) -> list[int]:
    """The features that settings choose, in order of their index.

    Raises:
        ConfigError: one that is not there.
        ArtifactError: a store in which no feature is alive.
    """
    beyond = [feature for feature in config.features if feature >= store.n_features]
    if beyond:
        raise ConfigError(
            f"features: {beyond[0]} does not exist: {store.path} has features 0 to "
            f"{store.n_features - 1}"
        )
    if config.features:
        return sorted(set(config.features))
    alive = np.flatnonzero(~store.flag("dead")).tolist()
    if not alive:
        raise ArtifactError(
            f"{store.path} holds no examples: every feature was silent on its text; build it on "
            "more text with `saelab features … --n-tokens`"
        )
    if config.densest is not None:
        n_active = store.table()["n_active"]
        alive = sorted(alive, key=lambda feature: (-n_active[feature], feature))[: config.densest]
    elif config.sample is not None:
        alive = in_fixed_order(alive, config.seed)[: config.sample]
    return sorted(alive)


def judge_of(config: ExplainConfig, ask: Asker) -> Judge:
    """The language model as explainer and judge, as settings say."""
    options = config.asked
    return Judge(
        ask, windows_per_question=options.windows_per_question, max_tokens=options.max_tokens
    )


def _texts(
    store: FeatureStore,
    config: ExplainConfig,
    features: Sequence[int],
    ask: Asker,
    workers: int,
    stop: StopRequest,
) -> tuple[dict[int, str], int]:
    """Explanations by feature, of those that got one, and how many had no example."""
    judge = judge_of(config, ask)

    def explain(feature: int) -> tuple[int, bool, str | None]:
        evidence = gather(store, feature, config.evidence, config.seed)
        if not evidence.shown:
            return feature, False, None
        return feature, True, judge.explain(evidence.shown, evidence.contrast)

    texts: dict[int, str] = {}
    shown = 0
    with progress_bar(len(features), "explaining", "features") as bar:
        for feature, has_examples, text in _in_parallel(explain, features, workers, stop):
            shown += has_examples
            bar.update(1)
            if text is not None:
                texts[feature] = text
            elif shown >= PATIENCE and not texts:
                break
    if not shown:
        raise _no_examples(store)
    if not texts:
        raise ModelError(
            f"{ask.model} explained none of {shown} features: it refused {ask.tally.refused} times "
            f"and gave {ask.tally.unreadable} answers that could not be read; give another --model"
        )
    return dict(sorted(texts.items())), len(features) - shown


def _no_examples(store: FeatureStore) -> ArtifactError:
    return ArtifactError(
        f"{store.path} holds no examples of these features: choose others, or build it on more "
        "text with `saelab features … --n-tokens`"
    )


def _controls(config: ExplainConfig, texts: dict[int, str]) -> dict[int, str | None]:
    """For the features with controls: another one's explanation, unless all say the same."""
    order = in_fixed_order(texts, config.seed)
    chosen = order if config.controls is None else order[: config.controls]
    return {
        feature: next(
            (texts[o] for o in order[i + 1 :] + order[:i] if texts[o] != texts[feature]), None
        )
        for i, feature in enumerate(chosen)
    }


def _steering(folder: Path, store: FeatureStore, config: ExplainConfig) -> Steering:
    """What writes texts with features boosted: the dictionary and the model it was trained on."""
    from saelab.cache.config import DataOverrides
    from saelab.dictionary import load_dictionary
    from saelab.dictionary.data_spec import data_spec_of

    from .intervention import Steering

    saved = load_dictionary(folder)
    model = data_spec_of(saved, DataOverrides()).load_model(config.asked.device)
    saved.dictionary.to(model.device)
    return Steering(model, saved, store.vocabulary, config.seed)


def _explained(
    store: FeatureStore,
    config: ExplainConfig,
    ask: Asker,
    texts: dict[int, str],
    controls: dict[int, str | None],
    steering: Steering | None,
    feature: int,
) -> LabelContent:
    """The explanation of a feature with its scores, ready to be written.

    Args:
        store, config, ask: as in `explain_dictionary`.
        texts: the explanation of every feature.
        controls: another feature's, for features whose controls are measured.
        steering: None where nothing is boosted.
        feature: which.
    """
    evidence = gather(store, feature, config.evidence, config.seed)
    explanation, shuffled = texts[feature], controls.get(feature)
    nothing = EXPLAINS_NOTHING if feature in controls else None
    judge = judge_of(config, ask)
    scores: list[Score | None] = [
        *judged(
            judge,
            evidence,
            explanation,
            shuffled=shuffled,
            random=nothing,
            names=config.scores,
            seed=config.seed,
        )
    ]
    if "embedding" in config.scores and evidence.held_out:
        scores.append(_embedding_score(evidence, explanation, shuffled, nothing))
    if steering is not None:
        from .intervention import intervention

        maximum = float(store.table()["max_act"][feature])
        with _ONE_AT_A_TIME:
            written = steering.texts(feature, maximum, BEGINNINGS)
        scores.append(
            intervention(judge.which_was_steered, written, explanation, shuffled=shuffled)
        )
    return explanation_of(
        feature,
        explanation,
        tuple(score for score in scores if score is not None),
        method=TOO_WEAK if ask.model == EMBEDDED else METHOD,
        model=ask.model[-100:],
        prompt_hash=prompts_hash(to_plain(config.evidence), config.seed),
    )


def _embedding_score(
    evidence: Evidence, explanation: str, shuffled: str | None, random: str | None
) -> Score | None:
    """How much nearer in meaning an explanation is to examples that fire than to silent ones."""
    from .meaning import embed

    windows = evidence.held_out + evidence.quiet
    fires = [True] * len(evidence.held_out) + [False] * len(evidence.quiet)
    said = (explanation, shuffled, random)
    with _ONE_AT_A_TIME:
        vectors = embed([*(text or "" for text in said), *("".join(w.texts) for w in windows)])
    cosines = vectors[3:] @ vectors[:3].T
    value, *controls = (ranking(fires, column) for column in cosines.T.tolist())
    first, second = (
        control if text else None for control, text in zip(controls, said[1:], strict=True)
    )
    return score_of("embedding", fires, value, shuffled=first, random=second)


def _written(
    contents: Iterable[LabelContent], book: LabelBook, total: int, what: str
) -> list[LabelContent]:
    """Write explanations as they come, those before an error or a stop too."""
    written: list[LabelContent] = []
    waiting: list[LabelContent] = []
    try:
        with progress_bar(total, what, "features") as bar:
            for content in contents:
                waiting.append(content)
                bar.update(1)
                if len(waiting) == BETWEEN_WRITES:
                    book.add_many(waiting)
                    written += waiting
                    waiting = []
    finally:
        if waiting:
            book.add_many(waiting)
            written += waiting
    return written


def _in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, stop: StopRequest
) -> Iterator[Result]:
    """Results as they come; after an error or a stop nothing more is begun.

    Raises:
        Stopped: a signal asked to stop.
    """
    left = iter(items)
    running: set[Future[Result]] = set()
    with ThreadPoolExecutor(workers) as pool:
        while True:
            for item in left:
                running.add(pool.submit(work, item))
                if len(running) == workers:
                    break
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
            if stop:
                raise Stopped("stopped: what was finished is kept", stop.signal_name)

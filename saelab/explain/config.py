"""Settings of `saelab explain`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from saelab.config import Within, problems_in
from saelab.errors import ConfigError

Method = Literal["token-context", "language-model"]
ScoreName = Literal["detection", "fuzzing", "simulation", "embedding", "intervention"]


@dataclass(frozen=True, kw_only=True)
class EvidenceSettings:
    """How many examples, and how wide."""

    window: Annotated[int, Within(1)] = 16
    """Tokens on either side of the one an example is about."""
    n_shown: Annotated[int, Within(1)] = 20
    """Firing examples that an explainer sees, at most."""
    n_held_out: Annotated[int, Within(1)] = 20
    """Firing examples that its explanation is judged on, at most."""
    n_quiet: Annotated[int, Within(0)] = 10
    """Examples without the feature that it is judged on, at most; as many others are shown."""

    def __post_init__(self) -> None:
        if problems := problems_in(self):
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which language model explains and judges, and how it is asked."""

    endpoint: str | None = None
    """Base address of an OpenAI-compatible server (llama.cpp, vLLM, Ollama, hosted), as in
    http://localhost:8080/v1. None: `model` is run here."""
    model: str | None = None
    """With an endpoint: the model's name there; None: the only one it has. Without: a model folder,
    a .gguf file or a name on the Hub; "local" is the embedded one, too weak to explain well."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; none is sent where it is unset."""
    concurrency: Annotated[int, Within(1, 256)] = 8
    """Questions asked at once."""
    requests_per_minute: Annotated[float | int | None, Within(0, low_open=True)] = None
    """Questions a minute, at most. None: no limit but the server's."""
    time_limit: Annotated[float | int, Within(0, low_open=True)] = 120
    """Seconds to wait for one answer."""
    retries: Annotated[int, Within(0, 100)] = 6
    """Tries after the first, of a question that failed for a reason that may pass."""
    max_tokens: Annotated[int, Within(16)] = 1024
    """Tokens of one answer, at most; models that think aloud need more."""
    windows_per_question: Annotated[int, Within(1, 100)] = 10
    """Excerpts judged in one question: more cost less, fewer are judged with more care."""
    model_dtype: str = "bfloat16"
    """What a model without an endpoint computes in."""
    device: str = "auto"
    """Where it runs, and the model that features are boosted in."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", self.key_variable):
            # What was given may be the key itself, so it is not repeated.
            problems.append(
                "key_variable: expected the name of an environment variable, such as "
                "OPENAI_API_KEY, and not the key"
            )
        if problems:
            raise ConfigError(problems)


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which features are explained, from what, and how the explanations are scored."""

    method: Method | None = None
    """How: by tokens and contexts, which needs no model, or by a language model. None: by a
    language model where an endpoint or a model is given."""
    features: Annotated[tuple[int, ...], Within(0)] = ()
    """These features alone. Without any of the three choices: all that are alive."""
    densest: Annotated[int | None, Within(1)] = None
    """The so many that fire most often."""
    sample: Annotated[int | None, Within(1)] = None
    """So many drawn at random from those that are alive."""
    scores: tuple[ScoreName, ...] = ("detection", "fuzzing", "simulation")
    """Scores of a language model's explanations; "embedding" asks no model but needs a sentence
    encoder, and "intervention" runs the model that the dictionary was trained on. Explanations by
    tokens and contexts always have the first three."""
    controls: Annotated[int | None, Within(0)] = 50
    """Features whose scores are measured again with another feature's explanation and with one
    that says nothing. None: all."""
    evidence: EvidenceSettings = field(default_factory=EvidenceSettings, metadata={"flatten": True})
    """Which examples are shown, and which are judged."""
    asked: ModelOptions = field(default_factory=ModelOptions, metadata={"flatten": True})
    """The language model."""
    price_in: Annotated[float | int | None, Within(0)] = None
    """Price of a million tokens read, for the estimate of the cost."""
    price_out: Annotated[float | int | None, Within(0)] = None
    """Price of a million tokens written."""
    seed: int = 0
    """Decides which features are drawn, and which examples are judged."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        chosen = [
            n for n in ("features", "densest", "sample") if getattr(self, n) not in ((), None)
        ]
        if len(chosen) > 1:
            problems.append(f"{' and '.join(chosen)} choose features: give one of them")
        has_model = self.asked.endpoint is not None or self.asked.model is not None
        if self.method == "language-model" and not has_model:
            problems.append(
                "method: no language model to ask: give --endpoint, as in --endpoint "
                "http://localhost:8080/v1, or --model with a folder, a .gguf file or local"
            )
        if self.method == "token-context" and has_model:
            problems.append(
                "method: token-context asks no language model: leave --endpoint and --model out, "
                "or give --method language-model"
            )
        if problems:
            raise ConfigError(problems)

    @property
    def asks_a_model(self) -> bool:
        """Whether a language model explains."""
        return self.asked.endpoint is not None or self.asked.model is not None

"""Tasks whose attributes are known: prompts, counterfactuals, answers."""

from __future__ import annotations

from collections.abc import Callable

from saelab.errors import ConfigError, did_you_mean

from .frames import Tokenizer
from .gendered_pronoun import gendered_pronoun_task
from .greater_than import greater_than_task
from .interface import Task
from .ioi import ioi_task
from .subject_verb_agreement import subject_verb_agreement_task

TASKS: dict[str, Callable[[Tokenizer], Task]] = {
    "ioi": ioi_task,
    "greater_than": greater_than_task,
    "subject_verb_agreement": subject_verb_agreement_task,
    "gendered_pronoun": gendered_pronoun_task,
}
"""Task -> the function that builds it for a model's tokenizer."""


def load_task(name: str, tokenizer: Tokenizer) -> Task:
    """A task for the tokenizer of a model.

    Args:
        name: one of `TASKS`.
        tokenizer: the language model, or whatever tokenises like it.

    Raises:
        ConfigError: no such task, or one whose words this tokenizer does not keep whole.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}: {did_you_mean(name, TASKS)}")
    return TASKS[name](tokenizer)

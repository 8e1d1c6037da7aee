"""A language model on this machine that answers questions, through saelab's own forward pass.

One question at a time: made for models that fit, not for speed. A server such as llama.cpp's or
vLLM's on the same machine is many times faster. Its answer is begun for it, and ends where the
one field that every question asks for does, so that small models answer in the form asked for.
"""

from __future__ import annotations

import json
import re
import threading

from saelab.errors import ModelError, first_line

from .endpoint import Answer, Question

EMBEDDED = "smollm2-135m"
"""What `--model local` means; too weak for explanations that are worth reading."""


class LocalModel:
    """A model folder, a GGUF file or a name on the Hub, as `load_language_model` takes them.

    Args:
        name: of the model; "local" is the embedded one.
        dtype: what it computes in.
        device: where it runs.

    Raises:
        ModelError: no such model, one without a chat template, or an encoder.
    """

    concurrency = 1

    def __init__(self, name: str, *, dtype: str = "bfloat16", device: str = "auto"):
        from saelab.model.language_model import load_language_model

        self._model = load_language_model(
            EMBEDDED if name == "local" else name, dtype=dtype, device=device
        )
        self._model.require_next_token("explanations")
        if not self._model.tokenizer.chat_template:
            raise ModelError(
                f"{self._model.name} has no chat template, so that it cannot be asked: give its "
                "instruct version with --model"
            )
        self.name: str = self._model.name
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Answer:
        """The likeliest answer, token by token.

        Raises:
            ModelError: the question is longer than the model's context.
        """
        import torch

        model = self._model
        ((name, form),) = question.schema["properties"].items()
        opening, ends = ('"', '["\n]') if form["type"] == "string" else ("[", "[]]")
        begun = f'{{"{name}": {opening}'
        try:
            rendered = model.tokenizer.apply_chat_template(
                question.messages(), tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template may raise anything
            raise ModelError(
                f"the chat template of {model.name} refuses a question ({first_line(error)})"
            ) from error
        (ids,) = model.tokenize([rendered + begun], control_tokens=True)
        room = model.max_context - len(ids)
        if room < 1:
            raise ModelError(
                f"a question of {len(ids)} tokens does not fit the {model.max_context} of "
                f"{model.name}: lower --n-shown, --window or --windows-per-question"
            )
        written: list[int] = []
        ended = None
        with self._lock:
            for step in model.generate(
                torch.tensor(ids),
                "blocks.0.hook_resid_post",
                lambda x, tokens, first: x,  # noqa: ARG005 - nothing is edited
                n_versions=1,
                n_tokens=min(question.max_tokens, room),
                temperature=0,
            ):
                if bool(step.finished[0]):
                    break
                written.append(int(step.tokens[0]))
                if ended := re.search(ends, model.text_of(written)):
                    break
        said = model.text_of(written)[: ended.start() if ended else None]
        # A sentence is whole wherever it ends; a list that is not is left as it is: unreadable.
        text = begun + said + ("]}" if ended else "")
        if opening == '"':
            text = json.dumps({name: said}, ensure_ascii=False)
        return Answer(text, len(ids), len(written))

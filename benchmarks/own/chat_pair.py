"""Finetunes the embedded model briefly on conversations, for a crosscoder over it and the original.

    python benchmarks/own/chat_pair.py OUT

writes `OUT/chat.jsonl`, conversations made of the embedded text, and `OUT/tuned`, a folder with the
finetuned model and its tokenizer. The user gives a sentence of an address, the assistant answers
"Fellow citizens:" and the next one. Blocks 4 to 12 learn, on what the assistant says.
docs/crosscoders.md shows what a crosscoder finds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saelab.model.model_files import resolve_model
from saelab.text.config import TextConfig
from saelab.text.contexts import read_documents

SHORTEST, LONGEST = 40, 250
"""Characters of a sentence."""
CONVERSATIONS = 6000
BLOCKS = range(4, 13)
STEPS, BATCH, LONGEST_TOKENS, RATE = 32, 4, 96, 3e-4


def conversations() -> Iterator[list[dict[str, str]]]:
    """Pairs of neighbouring sentences of the embedded text as a question and its answer."""
    for document in read_documents(TextConfig()):
        sentences = re.split(r"(?<=[.!?])\s+", " ".join(document.text.split()))
        for first, second in zip(sentences[::2], sentences[1::2], strict=False):
            if all(SHORTEST <= len(sentence) <= LONGEST for sentence in (first, second)):
                yield [
                    {"role": "user", "content": f"Go on with this address: {first}"},
                    {"role": "assistant", "content": f"Fellow citizens: {second}"},
                ]


def finetune(chats: list[list[dict[str, str]]], folder: Path, out: Path) -> None:
    """Train on the assistant's tokens and save model and tokenizer."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(False)
    for index in BLOCKS:
        model.model.layers[index].requires_grad_(True)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=RATE, weight_decay=0.0)
    for step in range(STEPS):
        tokens = torch.full((BATCH, LONGEST_TOKENS), tokenizer.pad_token_id)
        labels = torch.full_like(tokens, -100)
        for row, chat in enumerate(chats[step * BATCH : (step + 1) * BATCH]):
            asked = tokenizer.apply_chat_template(
                chat[:1], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
            whole = torch.tensor(whole[:LONGEST_TOKENS])
            tokens[row, : len(whole)] = whole
            labels[row, len(asked) : len(whole)] = whole[len(asked) :]
        rate = RATE * min(1.0, (step + 1) / 5) * min(1.0, 2 * (1 - step / STEPS))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimizer.step()
        if step % 8 == 0 or step == STEPS - 1:
            print(f"step {step}: loss {loss.item():.3f} nats per token of the assistant")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Write the conversations and the finetuned model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    chats = list(itertools.islice(conversations(), CONVERSATIONS))
    with (out / "chat.jsonl").open("w") as file:
        file.writelines(json.dumps({"messages": chat}) + "\n" for chat in chats)
    print(f"{len(chats)} conversations")
    finetune(chats, resolve_model("smollm2-135m").folder, out / "tuned")


if __name__ == "__main__":
    main()

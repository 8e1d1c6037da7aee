"""What the numbers of an "absorption" result mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..definitions import Definition, filled_in

_OVER = "mean over the letters that count"
_WORDS = "tested words that have the letter and that its probe recognises"
MEANINGS = {
    "Absorption": {
        "absorption_fraction": "For each of the {_WORDS}: min(absorbing, total - main) over that "
        "plus main; 1 where main is not positive; 0 where main reaches total or absorbing is "
        "below {least_share} of total. total: the activation's projection on the unit probe; main: "
        "that of the main latents; absorbing: that of the {most} strongest others with a cosine "
        "of at least {least_cosine} with the probe. Mean over words, then {_OVER}.",
        "full_absorption": "Share of the {_WORDS} on which every main latent is silent and one "
        "other latent, with a cosine of at least {full_cosine} with the probe, carries at least "
        "{least_share} of total; {_OVER}.",
        "absorption_fraction_sd": "Standard deviation of absorption_fraction over letters.",
        "full_absorption_sd": "Standard deviation of full_absorption over letters.",
    },
    "Main latents": {
        "main_f1": "F1, on tested words, of a logistic probe of the letter's main latents; "
        "{_OVER}. A dictionary without latents of letters has little to absorb: read absorption "
        "beside this.",
        "best_latent_f1": "F1 of a probe of the first main latent alone; {_OVER}.",
        "main_f1_shuffled": "F1 of the best latent for letters that were shuffled over the words: "
        "the control of best_latent_f1.",
        "main_latents": "Main latents of a letter: the one with the largest weight in a probe with "
        "an L1 penalty, and each next one of at most {max_k} while it adds more than {split_gain} "
        "of F1; {_OVER}. Above 1 where a letter is split over latents.",
        "main_latents_sd": "Standard deviation of main_latents over letters.",
        "main_cosine": "Cosine of a main latent's decoder row with the letter's probe; mean over "
        "main latents, then {_OVER}.",
    },
    "Hedging": {
        "hedging": "Share of the squared norm of a main latent's decoder row that lies in the span "
        "of the other letters' probes, less their parts along the letter's own probe; mean over "
        "main latents, then {_OVER}. 0: the latent writes this letter only; 0.5: as much of "
        "another as of its own.",
        "hedging_random": "What a random direction has on average: (letters - 1) / d_out.",
    },
    "Probes of the activations": {
        "probe_f1": "F1, on tested words, of the letter's logistic probe of the activation: what "
        "main_f1 could reach; {_OVER}.",
        "probe_f1_shuffled": "The same, learnt and tested on letters that were shuffled over the "
        "words.",
    },
    "What was counted": {
        "n_letters": "Letters that count: their probe's F1 is above {least_f1}. Below "
        "{least_letters} of them means over letters are null.",
        "n_words": "Words, each a token of the vocabulary behind {n_examples} solved examples.",
        "n_recognised": "Tested words that absorption is measured on.",
    },
}
SOURCES = {
    "Absorption": "SAEBench 0.6.0, absorption_first_letter; arXiv 2409.14507",
    "Main latents": "SAEBench 0.6.0, k-sparse probing; arXiv 2409.14507",
    "Hedging": "saelab; the effect: arXiv 2505.11756",
}


def absorption_definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """What every number means, in reading order."""
    lower = ("absorption_fraction", "full_absorption", "hedging")
    higher = ("main_f1", "best_latent_f1", "probe_f1")
    filled = filled_in(
        MEANINGS,
        {**facts, "_OVER": _OVER, "_WORDS": _WORDS},
        units={
            **dict.fromkeys(("main_latents", "main_latents_sd"), "latents"),
            **dict.fromkeys(("n_words", "n_recognised"), "words"),
            "n_letters": "letters",
        },
        better={**dict.fromkeys(lower, "lower"), **dict.fromkeys(higher, "higher")},
    )
    return [replace(each, source=SOURCES.get(each.group, "")) for each in filled]

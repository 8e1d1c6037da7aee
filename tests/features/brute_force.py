"""What a store should say, computed from dense codes in float64 the slow way."""

from __future__ import annotations

import numpy as np


def sequence_maxima(codes, length):
    """Context -> (maximum, first position of it) of one latent's codes, where it is active."""
    by_context = codes.reshape(-1, length).astype(np.float64)
    return {
        context: (row.max(), int(row.argmax()))
        for context, row in enumerate(by_context)
        if row.max() > 0
    }


def top_places(codes, tokens, n_top, radius):
    """(context, position) of the top examples: highest maxima, equal windows once."""
    length = tokens.shape[1]
    maxima = sequence_maxima(codes, length)
    ordered = sorted(maxima, key=lambda c: (-maxima[c][0], c))
    places, seen = [], set()
    for context in ordered:
        anchor = maxima[context][1]
        offsets = range(anchor - radius, anchor + radius + 1)
        window = tuple(int(tokens[context, o]) if 0 <= o < length else -1 for o in offsets)
        if window not in seen:
            seen.add(window)
            places.append((context, anchor))
        if len(places) == n_top:
            break
    return places


def coactivation(codes, counted, latent):
    """Jaccard index and Pearson correlation of one latent with every latent, over counted rows."""
    rows = codes[counted.reshape(-1)].astype(np.float64)
    active = rows > 0
    both = (active & active[:, [latent]]).sum(0)
    either = (active | active[:, [latent]]).sum(0)
    jaccard = np.divide(both, either, out=np.zeros(len(both)), where=either > 0)
    centred = rows - rows.mean(0)
    spread = np.sqrt((centred**2).sum(0))
    product = (centred * centred[:, [latent]]).sum(0)
    scale = spread * spread[latent]
    return both, jaccard, np.divide(product, scale, out=np.zeros(len(both)), where=scale > 1e-9)

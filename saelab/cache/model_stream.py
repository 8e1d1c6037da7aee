"""Shuffled batches straight from the model, with no cache: a pool that is refilled.

Each batch takes random slots out of the pool and puts freshly harvested rows into the same slots,
so the cost is that of the rows moved, whatever the size of the pool.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saelab.dictionary.site import Site
from saelab.errors import ActivationError, ConfigError, ResourceError
from saelab.formats.files import hash_of
from saelab.memory import memory_of
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.contexts import describe_text

from .batch import ActivationBatch, RowStatistics, RowSums
from .config import HarvestConfig
from .format import DTYPES
from .harvest import CapturedBatch, Harvest
from .permutation import Permutation

_log = logging.getLogger(__name__)
_EXCLUDED = "excluded_"


class ModelStream:
    """Endless batches of a model's rows at a site; the interface of `CacheStream`.

    The pool is filled on first use. Its rows give the statistics; when the text (or its first
    `config.n_tokens`) ends, the stream starts again at the beginning.

    Args:
        model: the model of `config`.
        config: what to harvest; with the hook points of the site, and `cache_dtype` as the dtype of
            the pool.
        batch_rows: rows in a batch.
        seed: of the slots that are taken.
        pool_rows: slots in the pool; at least `batch_rows`. More shuffle better.
        site: what is read and written. None: the one hook point of `config`.

    Raises:
        ConfigError: settings that do not fit; all of them are named.
        ResourceError: the pool is larger than memory.
        TextError: there is no such text.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: HarvestConfig,
        batch_rows: int,
        seed: int,
        pool_rows: int,
        site: Site | None = None,
    ):
        self.site = Site.of(config.hook_points[0]) if site is None else site
        problems = []
        if set(config.hook_points) != set(self.site.hook_points):
            problems.append(
                f"hook_points: {', '.join(config.hook_points)} are harvested, and {self.site} is "
                "what is read and written: they must be the same"
            )
        if not 1 <= batch_rows <= pool_rows:
            problems.append(f"batch_rows: {batch_rows} must lie in 1 to pool_rows ({pool_rows})")
        if problems:
            raise ConfigError(problems)
        self._harvest = Harvest(model, config)
        self._widths = {
            "activations": [self._harvest.widths[name] for name in self.site.reads],
            "targets": [self._harvest.widths[name] for name in self.site.writes],
        }
        self.d_in = sum(self._widths["activations"])
        self.batch_rows = batch_rows
        self.seed = seed
        self.pool_rows = pool_rows
        self._text_hash: str | None = describe_text(config.text)["content_hash"]
        left_out = self._harvest.left_out
        self._text_read = hash_of([self._text_hash, left_out]) if left_out else self._text_hash
        self._excluded: Counter[str] = Counter()
        self._by_hook_point: dict[str, RowStatistics] | None = None
        self._drawn = 0  # batches handed out: with the seed, all there is to the randomness
        self._next_context = 0
        self._text_epoch = 0
        self._rows_this_epoch = 0
        self._batches: Iterator[CapturedBatch] | None = None
        widths = {"activations": self.d_in}
        if not self.site.is_autoencoder:
            widths["targets"] = sum(self._widths["targets"])
        if config.gradients:
            widths["gradients"] = sum(self._widths["targets"])
        dtype = DTYPES[config.cache_dtype]
        needed = pool_rows * sum(widths.values()) * dtype.itemsize
        there = memory_of(torch.device("cpu"))
        if there is not None and needed > there:
            raise ResourceError(
                f"a pool of {pool_rows:,} rows at {self.site} takes {needed / 1e9:,.0f} GB, and "
                f"there are {there / 1e9:,.0f} GB: lower --stream-pool-rows, or make a cache first"
            )
        self._pool = {
            name: torch.empty(pool_rows, width, dtype=dtype) for name, width in widths.items()
        }
        self._pending = {name: pool[:0] for name, pool in self._pool.items()}

    @property
    def statistics(self) -> RowStatistics:
        """Of what is read, over the first full pool; norm ceilings are from the first contexts."""
        return RowStatistics.joined([self._statistics()[name] for name in self.site.reads])

    @property
    def target_statistics(self) -> RowStatistics | None:
        """Statistics of what is written, where that is not what is read."""
        if self.site.is_autoencoder:
            return None
        return RowStatistics.joined([self._statistics()[name] for name in self.site.writes])

    def _statistics(self) -> dict[str, RowStatistics]:
        if self._by_hook_point is None:
            self._by_hook_point = self._start()
        return self._by_hook_point

    def _ceilings(self) -> dict[str, float | None]:
        return {name: each.norm_ceiling for name, each in self._statistics().items()}

    @property
    def excluded(self) -> dict[str, int]:
        """Positions excluded so far by reason, in every pass over the text; none before use."""
        return dict(self._excluded)

    def provenance(self, site: Site | None = None) -> dict[str, Any]:
        """What a dictionary trained on this stream was made from, or on a part of its site."""
        names, ceilings = (site or self.site).hook_points, self._ceilings()
        ceilings, first = {name: ceilings[name] for name in names}, names[0]
        made_from = self._harvest.provenance(first, ceilings[first], self._text_hash)
        several = {"norm_ceilings": ceilings} if len(ceilings) > 1 else {}
        return {**made_from, "cache_hash": None, **several}

    def next_batch(self) -> ActivationBatch:
        """The next `batch_rows` rows in float32, with targets and gradients as `AlignedCaches` has
        them.

        Raises:
            ActivationError: the model gave a NaN or an infinity.
        """
        ceilings = self._ceilings()
        order = Permutation(self.pool_rows, self.seed, self._drawn)
        slots = torch.from_numpy(order(np.arange(self.batch_rows)))
        taken = {name: column[slots].float() for name, column in self._pool.items()}
        self._put(slots, ceilings)
        self._drawn += 1
        return ActivationBatch(**taken)

    def state(self) -> dict[str, Tensor | int | str]:
        """All that `restore` needs to go on with the next batch, the pool included."""
        statistics = self._statistics()
        state: dict[str, Tensor | int | str] = {
            "stream": "model",
            "source": self._sources()[0],
            "text_hash": self._text_read or "",
            "seed": self.seed,
            "drawn": self._drawn,
            "next_context": self._next_context,
            "text_epoch": self._text_epoch,
            "rows_this_epoch": self._rows_this_epoch,
            "statistics_rows": next(iter(statistics.values())).n_rows,
        }
        for suffix, each in zip(self._suffixes(), statistics.values(), strict=True):
            state[f"mean{suffix}"] = each.mean.clone()
            norms = [each.mean_squared_norm, each.centred_mean_squared_norm]
            state[f"squared_norms{suffix}"] = torch.tensor(norms, dtype=torch.float64)
            if each.norm_ceiling is not None:
                ceiling = torch.tensor(each.norm_ceiling, dtype=torch.float64)
                state[f"norm_ceiling{suffix}"] = ceiling
        for reason, count in self._excluded.items():
            state[_EXCLUDED + reason] = count
        for name in self._pool:
            state[f"pool_{name}"] = self._pool[name].clone()
            state[f"pending_{name}"] = self._pending[name].clone()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ActivationError: the state is of another kind of stream, model, config, pool size or
                text.
        """
        config = self._harvest.config
        if state.get("stream") != "model" or state["source"] not in self._sources():
            raise ActivationError(
                "the saved data position is of another stream, model or config than "
                f"{config.model} at {self.site}: resume with the settings that the run "
                "started with"
            )
        if state.get("text_hash") != (self._text_read or ""):
            raise ActivationError(
                f"the text {config.text.source} changed since the data position was saved: restore "
                "the text that the run started with, or start a new run"
            )
        self._by_hook_point = {}
        for name, suffix in zip(self.site.hook_points, self._suffixes(), strict=True):
            ceiling = state.get(f"norm_ceiling{suffix}")
            raw, centred = state[f"squared_norms{suffix}"].tolist()
            self._by_hook_point[name] = RowStatistics(
                n_rows=int(state["statistics_rows"]),
                mean=state[f"mean{suffix}"].clone(),
                mean_squared_norm=raw,
                centred_mean_squared_norm=centred,
                norm_ceiling=None if ceiling is None else float(ceiling),
            )
        self.seed, self._drawn = int(state["seed"]), int(state["drawn"])
        self._next_context = int(state["next_context"])
        self._text_epoch = int(state["text_epoch"])
        self._rows_this_epoch = int(state["rows_this_epoch"])
        self._batches = None
        self._excluded = Counter(
            {
                name.removeprefix(_EXCLUDED): int(count)
                for name, count in state.items()
                if name.startswith(_EXCLUDED)
            }
        )
        for name in self._pool:
            self._pool[name].copy_(state[f"pool_{name}"])
            self._pending[name] = state[f"pending_{name}"].clone()

    def _sources(self) -> tuple[str, ...]:
        """Hash of all that decides the rows, and the one that older states have."""
        config, model_hash = self._harvest.config.to_json(), self._harvest.model.content_hash
        several = len(self.site.hook_points) > 1
        site = [self.site.to_json()] if several else []
        hashes = (model_hash, model_hash.partition(":")[0])
        return tuple(hash_of([config, each, self.pool_rows, *site]) for each in hashes)

    def _suffixes(self) -> list[str]:
        """Of the names in a state, by hook point."""
        return [f"_{index}" if index else "" for index in range(len(self.site.hook_points))]

    def _start(self) -> dict[str, RowStatistics]:
        """Set the norm ceilings, fill the pool, and measure its rows; by hook point."""
        self._pending = {name: pool[:0] for name, pool in self._pool.items()}
        self._batches = self._harvest.batches()
        head = list(islice(self._batches, self._harvest.calibration_batches))
        ceilings = {
            name: self._harvest.calibrate(head, name).norm_ceiling for name in self.site.hook_points
        }
        for batch in head:
            self._keep(batch, ceilings)
        with progress_bar(self.pool_rows, "filling the pool", "rows") as bar:
            for slots in torch.arange(self.pool_rows).split(self.batch_rows):
                self._put(slots, ceilings)
                bar.update(len(slots))
        parts: dict[str, Tensor] = {}
        for column, names in (("targets", self.site.writes), ("activations", self.site.reads)):
            if column in self._pool:
                rows = self._pool[column].split(self._widths[column], dim=1)
                parts |= zip(names, rows, strict=True)
        return {name: RowSums.of(parts[name]).statistics(c) for name, c in ceilings.items()}

    def _put(self, slots: Int[Tensor, " slots"], ceilings: Mapping[str, float | None]) -> None:
        """Put fresh rows into these slots of the pool."""
        filled = 0
        while filled < len(slots):
            if len(self._pending["activations"]) == 0:
                self._read_on(ceilings)
            taken = min(len(slots) - filled, len(self._pending["activations"]))
            where = slots[filled : filled + taken]
            for name, pool in self._pool.items():
                pool[where] = self._pending[name][:taken]
                self._pending[name] = self._pending[name][taken:]
            filled += taken

    def _read_on(self, ceilings: Mapping[str, float | None]) -> None:
        """Run the next batch of contexts; at the end of the text, go back to its beginning."""
        if self._batches is None:
            self._batches = self._harvest.batches(first_context=self._next_context)
        batch = next(self._batches, None)
        if batch is not None:
            self._keep(batch, ceilings)
            return
        if self._rows_this_epoch == 0:
            raise ActivationError("no row passes the token filter: relax it or read more text")
        self._text_epoch += 1
        _log.info("the text has ended; its pass %d begins", self._text_epoch + 1)
        self._next_context, self._rows_this_epoch, self._batches = 0, 0, None

    def _keep(self, batch: CapturedBatch, ceilings: Mapping[str, float | None]) -> None:
        """Append the rows of a batch to those that wait for a slot."""
        kept = self._harvest.keep_rows(batch, ceilings)
        for name, waiting in self._pending.items():
            hook_points = self.site.reads if name == "activations" else self.site.writes
            field = "gradients" if name == "gradients" else "activations"
            columns = [getattr(kept[hook_point], field).to(waiting) for hook_point in hook_points]
            rows = columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)
            self._pending[name] = torch.cat([waiting, rows])
        first = kept[self.site.hook_points[0]]
        self._next_context = batch.first_context + len(batch.tokens)
        self._rows_this_epoch += len(first.tokens)
        self._excluded.update(first.excluded)

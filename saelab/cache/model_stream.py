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

from saelab.errors import ActivationError, ConfigError
from saelab.formats.files import hash_of
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
    """Endless batches of a model's rows at one hook point; the interface of `CacheStream`.

    The pool is filled on first use. Its rows give the statistics; when the text (or its first
    `config.n_tokens`) ends, the stream starts again at the beginning.

    Args:
        model: the model of `config`.
        config: what to harvest; its one hook point, and `cache_dtype` as the dtype of the pool.
        batch_rows: rows in a batch.
        seed: of the slots that are taken.
        pool_rows: slots in the pool; at least `batch_rows`. More shuffle better.

    Raises:
        ConfigError: settings that do not fit; all of them are named.
        TextError: there is no such text.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: HarvestConfig,
        batch_rows: int,
        seed: int,
        pool_rows: int,
    ):
        problems = []
        if len(config.hook_points) != 1:
            problems.append(
                f"hook_points: a stream without a cache reads one, not {len(config.hook_points)}"
            )
        if not 1 <= batch_rows <= pool_rows:
            problems.append(f"batch_rows: {batch_rows} must lie in 1 to pool_rows ({pool_rows})")
        if problems:
            raise ConfigError(problems)
        self.hook_point = config.hook_points[0]
        self._harvest = Harvest(model, config)
        self.d_in = self._harvest.widths[self.hook_point]
        self.batch_rows = batch_rows
        self.seed = seed
        self.pool_rows = pool_rows
        self._text_hash: str | None = describe_text(config.text)["content_hash"]
        self._excluded: Counter[str] = Counter()
        self._statistics: RowStatistics | None = None
        self._drawn = 0  # batches handed out: with the seed, all there is to the randomness
        self._next_context = 0
        self._text_epoch = 0
        self._rows_this_epoch = 0
        self._batches: Iterator[CapturedBatch] | None = None
        columns = ("activations", "gradients") if config.gradients else ("activations",)
        dtype = DTYPES[config.cache_dtype]
        self._pool = {name: torch.empty(pool_rows, self.d_in, dtype=dtype) for name in columns}
        self._pending = {name: pool[:0] for name, pool in self._pool.items()}

    @property
    def statistics(self) -> RowStatistics:
        """Statistics of the first full pool, and the norm ceiling from the first contexts."""
        if self._statistics is None:
            self._statistics = self._start()
        return self._statistics

    @property
    def target_statistics(self) -> None:
        """What is read is what is written."""

    @property
    def excluded(self) -> dict[str, int]:
        """Positions excluded so far by reason, in every pass over the text; none before use."""
        return dict(self._excluded)

    def provenance(self) -> dict[str, Any]:
        """What a dictionary trained on this stream was made from."""
        ceiling = self.statistics.norm_ceiling
        made_from = self._harvest.provenance(self.hook_point, ceiling, self._text_hash)
        return {**made_from, "cache_hash": None}

    def next_batch(self) -> ActivationBatch:
        """The next `batch_rows` rows: float32 activations, and gradients where asked for.

        Raises:
            ActivationError: the model gave a NaN or an infinity.
        """
        ceiling = self.statistics.norm_ceiling
        order = Permutation(self.pool_rows, self.seed, self._drawn)
        slots = torch.from_numpy(order(np.arange(self.batch_rows)))
        taken = {name: column[slots].float() for name, column in self._pool.items()}
        self._put(slots, ceiling)
        self._drawn += 1
        return ActivationBatch(**taken)

    def state(self) -> dict[str, Tensor | int | str]:
        """All that `restore` needs to go on with the next batch, the pool included."""
        statistics = self.statistics
        state: dict[str, Tensor | int | str] = {
            "stream": "model",
            "source": self._sources()[0],
            "text_hash": self._text_hash or "",
            "seed": self.seed,
            "drawn": self._drawn,
            "next_context": self._next_context,
            "text_epoch": self._text_epoch,
            "rows_this_epoch": self._rows_this_epoch,
            "statistics_rows": statistics.n_rows,
            "mean": statistics.mean.clone(),
            "squared_norms": torch.tensor(
                [statistics.mean_squared_norm, statistics.centred_mean_squared_norm],
                dtype=torch.float64,
            ),
        }
        if statistics.norm_ceiling is not None:
            state["norm_ceiling"] = torch.tensor(statistics.norm_ceiling, dtype=torch.float64)
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
                f"{config.model} at {self.hook_point}: resume with the settings that the run "
                "started with"
            )
        if state.get("text_hash") != (self._text_hash or ""):
            raise ActivationError(
                f"the text {config.text.source} changed since the data position was saved: restore "
                "the text that the run started with, or start a new run"
            )
        ceiling = state.get("norm_ceiling")
        raw, centred = state["squared_norms"].tolist()
        self._statistics = RowStatistics(
            n_rows=int(state["statistics_rows"]),
            mean=state["mean"].clone(),
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
        hashes = (model_hash, model_hash.partition(":")[0])
        return tuple(hash_of([config, each, self.pool_rows]) for each in hashes)

    def _start(self) -> RowStatistics:
        """Set the norm ceiling, fill the pool, and measure its rows."""
        self._pending = {name: pool[:0] for name, pool in self._pool.items()}
        self._batches = self._harvest.batches()
        head = list(islice(self._batches, self._harvest.calibration_batches))
        ceiling = self._harvest.calibrate(head, self.hook_point).norm_ceiling
        for batch in head:
            self._keep(batch, ceiling)
        with progress_bar(self.pool_rows, "filling the pool", "rows") as bar:
            for slots in torch.arange(self.pool_rows).split(self.batch_rows):
                self._put(slots, ceiling)
                bar.update(len(slots))
        return RowSums.of(self._pool["activations"]).statistics(ceiling)

    def _put(self, slots: Int[Tensor, " slots"], ceiling: float | None) -> None:
        """Put fresh rows into these slots of the pool."""
        filled = 0
        while filled < len(slots):
            if len(self._pending["activations"]) == 0:
                self._read_on(ceiling)
            taken = min(len(slots) - filled, len(self._pending["activations"]))
            where = slots[filled : filled + taken]
            for name, pool in self._pool.items():
                pool[where] = self._pending[name][:taken]
                self._pending[name] = self._pending[name][taken:]
            filled += taken

    def _read_on(self, ceiling: float | None) -> None:
        """Run the next batch of contexts; at the end of the text, go back to its beginning."""
        if self._batches is None:
            self._batches = self._harvest.batches(first_context=self._next_context)
        batch = next(self._batches, None)
        if batch is not None:
            self._keep(batch, ceiling)
            return
        if self._rows_this_epoch == 0:
            raise ActivationError("no row passes the token filter: relax it or read more text")
        self._text_epoch += 1
        _log.info("the text has ended; its pass %d begins", self._text_epoch + 1)
        self._next_context, self._rows_this_epoch, self._batches = 0, 0, None

    def _keep(self, batch: CapturedBatch, ceiling: float | None) -> None:
        """Append the rows of a batch to those that wait for a slot."""
        rows = self._harvest.keep_rows(batch, {self.hook_point: ceiling})[self.hook_point]
        for name, waiting in self._pending.items():
            self._pending[name] = torch.cat([waiting, getattr(rows, name).to(waiting)])
        self._next_context = batch.first_context + len(batch.tokens)
        self._rows_this_epoch += len(rows.tokens)
        self._excluded.update(rows.excluded)

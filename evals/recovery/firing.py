"""When latents are active against when true features are: one pass over held-out rows."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.errors import ActivationError, ArtifactError
from saelab.stats.metrics import ReconstructionStatistics, SparsityStatistics
from saelab.synthetic.generator import PlantedRows

from .matching import Matching

MOST_ENTRIES = 1 << 22
"""Entries of the largest dense matrix of a pass, which bounds the rows taken at once."""


class FiringCounts:
    """Sums over held-out rows: everything that cosines do not tell."""

    def __init__(self, saved: SavedDictionary, matching: Matching):
        self.saved, self.matching = saved, matching
        device = saved.dictionary.W_dec.device
        n_features, d_sae = len(matching.cosine), saved.dictionary.d_sae
        self.reconstruction = ReconstructionStatistics(saved.dictionary.d_in, device=device)
        self.sparsity = SparsityStatistics(d_sae, device)
        self.square_total = torch.zeros(d_sae, dtype=torch.float64, device=device)
        self.norm_total = 0.0
        """Σ|x|²."""

        # By feature: the rows on which it is active, on which it is with its best latent, and on
        # which it is but absorbed; and the sum of the best latent's codes over the first of these.
        zeros = torch.zeros(4, n_features, dtype=torch.float64, device=device)
        self.active, self.both, self.absorbed, self.mass_on = zeros.unbind()

    def add(self, planted: PlantedRows) -> None:
        """Encode some rows and count.

        Raises:
            ArtifactError: the dictionary's output is not finite.
        """
        widest = max(
            len(self.matching.cosine),
            self.saved.dictionary.d_sae,
            len(self.matching.pairs),
            len(self.matching.absorbers),
        )
        step = max(1, MOST_ENTRIES // widest)
        device = self.saved.dictionary.W_dec.device
        present = planted.coefficients.to_dense() > 0
        for rows, active in zip(planted.rows.split(step), present.split(step), strict=True):
            try:
                self._add(rows.to(device), active.to(device))
            except ActivationError as error:
                raise ArtifactError(
                    f"dictionary {self.saved.folder} cannot be evaluated: {error}; train it again "
                    "or check its weights"
                ) from error

    @torch.no_grad()
    def _add(
        self, rows: Float[Tensor, "rows d_in"], active: Bool[Tensor, "rows n_features"]
    ) -> None:
        dictionary, matching = self.saved.dictionary, self.matching
        codes = dictionary.encode(rows)
        self.sparsity.update(codes)
        self.reconstruction.update(rows, dictionary.decode(codes))
        self.norm_total += float(rows.double().square().sum())
        dense = codes.to_dense().double().clamp(min=0)
        fires = dense > 0
        self.square_total += dense.square().sum(dim=0)
        self.active += active.sum(dim=0)
        self.both += (active & fires[:, matching.best_latent]).sum(dim=0)
        self.mass_on += (dense[:, matching.best_latent] * active).sum(dim=0)
        self.absorbed += (active & self._absorbed(active, fires)).sum(dim=0)

    def _absorbed(
        self, active: Bool[Tensor, "rows n_features"], fires: Bool[Tensor, "rows d_sae"]
    ) -> Bool[Tensor, "rows n_features"]:
        """Where all latents of a feature are silent and an absorber of it fires with its host."""
        feature, latent, host = self.matching.absorbers.unbind(dim=1)
        matched, matching = self.matching.pairs.unbind(dim=1)
        counts = torch.zeros(active.shape, dtype=torch.int64, device=active.device)
        firing = counts.index_add(1, matched, fires[:, matching].long())
        absorbing = counts.index_add(1, feature, (fires[:, latent] & active[:, host]).long())
        return (firing == 0) & (absorbing > 0)

    def alive(self) -> Bool[Tensor, " d_sae"]:
        """Latents with a positive code on some row."""
        return self.sparsity.count > 0

    def z_scores(self) -> Float[Tensor, " d_sae"]:
        """Per latent, (largest code − mean) / standard deviation over all rows; 0 if it is dead."""
        n_rows = max(self.sparsity.n_rows, 1)
        mean = self.sparsity.total / n_rows
        variance = (self.square_total / n_rows - mean.square()).clamp(min=0)
        spread = self.sparsity.maximum - mean
        return torch.where(variance > 0, spread / variance.sqrt().clamp(min=1e-300), 0.0)

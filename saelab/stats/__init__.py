"""Statistics: thin over scipy, streamed and in float64 where data is large. What there is:

* `moments`: `Moments(d_in, n_groups)` with `update(rows, group)`, `mean()`, `variance()`,
  `deviation()`.
* `cosines`: `unit_rows(vectors)`, `directions_of(W_dec, alive)`, `cosine_blocks(rows, columns)`,
  `nearest(rows, columns) -> cosine, index, back, back_index`, `most_similar(rows, columns, k)`,
  `random_directions(count, d_in, seed)`.
* `assignment`: `best_assignment(score)`, exact; `match_one_to_one(rows, columns) -> partner, gap`,
  by cosine, exact where the matrix fits; `auction(rows, columns)`, where it does not.
* `spread`: `spread_of(values) -> Spread(mean, sd, n)`, `t_quantile(degrees_of_freedom, level)`,
  `quantiles(values, shares)`, `pearson(first, second)`, `rank_correlation(first, second)`.
* `bootstrap`: `Bootstrap(n_items, n_resamples, seed).estimate(columns, score) -> Estimate`,
  `difference_interval(first, second, n_resamples=, generator=) -> low, high`.
* `power_law`: `fit_power_law(widths, values) -> PowerLaw`, c + a M^-m with an interval of c.
* `zipf`: `zipf_shares`, `zipf_budgets`, `fit_zipf(density)`.
* `seeds`: `splitmix64(values)`, `murmur64(values)`, `random_words(count, stream)`,
  `keyed_uniforms(keys, seed)`, `seeded_generator(*purpose)`.
* `metrics`: `METRICS`, `define`, `ReconstructionStatistics`, `SparsityStatistics`, `fvu`,
  `mean_l0`, `kl_divergence`, `loss_recovered`, `density_histogram`; the one arithmetic of metrics.
"""

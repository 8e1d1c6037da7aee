"""Statistics: thin over scipy, streamed and in float64 where data is large.

`moments` streamed means and variances; `cosines` between rows of matrices, nearest and most
similar; `assignment` one-to-one matching; `spread` means over seeds, quantiles, correlations;
`bootstrap` intervals; `power_law` c + a M^-m; `zipf` shares, budgets, fits; `seeds` fixed
pseudo-random numbers; `metrics` the arithmetic of all metrics, `metric_definitions` their words.
"""

"""What each element of a feature's page is, in one sentence each; stored in every manifest."""

DEFINITIONS = {
    "density": "Tokens on which the feature's code is positive, over tokens counted. Tokens that "
    "the token filter leaves out (BOS, separators, rows of excessive norm) are in neither.",
    "moments": "Mean, standard deviation, skewness and kurtosis (3 for a normal distribution) of "
    "the positive activations, computed in float64.",
    "quantiles": "Quantiles of the positive activations, interpolated linearly between neighbours; "
    "exact, from all of them.",
    "histogram": "Counts of the positive activations in 50 bins of equal width from 0 to the "
    "largest. An edge belongs to the bin above it.",
    "top_examples": "Contexts with the highest maximum, one window each. Of windows whose tokens "
    "around the maximum are equal, only the highest is shown.",
    "quantile_groups": "Contexts in which the feature is active, divided by their maximum into "
    "strata of equal size. A stratum holds its lower edge and not its upper one, but the highest "
    "holds both. Its shares are of single tokens: those whose activation is in the stratum.",
    "random_positives": "Tokens drawn uniformly from all on which the feature is active: an "
    "unbiased picture, where the top examples show the tail.",
    "near_misses": "Contexts where the nearest decoder neighbours are strongest and this feature "
    "is silent throughout; the anchor is where the neighbour is active.",
    "random_silent": "Contexts drawn uniformly from all in which the feature is silent throughout.",
    "logit_lens": "What one unit of activation adds to each token's logit if nothing came between: "
    "the decoder row times the gain of the final norm, through the unembedding centred over the "
    "vocabulary.",
    "logit_kurtosis": "Fourth standardised moment of those logits; high where the feature speaks "
    "for a few tokens.",
    "decoder_neighbours": "Features with the highest cosine of decoder rows.",
    "encoder_neighbours": "Features with the highest cosine of encoder columns.",
    "coactive_jaccard": "Features with the highest tokens-with-both over tokens-with-either, of "
    "all features.",
    "coactive_pearson": "Features with the highest correlation of activations over all counted "
    "tokens, zeros included, of all features.",
    "map": "First two principal components of the decoder rows, each scaled to norm 1.",
    "flags": "dead: never active on this text; rare and dense: density below or above the bounds "
    "named.",
    "max_act": "Largest activation on this text.",
}

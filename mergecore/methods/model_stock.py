"""Model Stock: the average of the fine-tuned models, moved towards the base as far as they disagree."""

from functools import reduce
from itertools import combinations

import numpy as np

from mergecore.methods.method import Params, Recipe, Target
from mergecore.methods.registry import method
from mergecore.methods.vectors import Array, Vectors, gram_of, weighted

LEAST_PRODUCT = 1e-6
"""Of the lengths of two deltas: smaller ones count as this large, so that deltas near zero are taken to disagree."""
LEAST_DENOMINATOR = 1e-6
"""Of the ratio: nearer to its pole than this, it is 0."""


class ModelStockParams(Params):
    filter_wise: bool = False
    """Measure the angles of each row of a tensor by itself, instead of those of whole tensors."""


@method(
    "model_stock",
    params=ModelStockParams,
    example=ModelStockParams(),
    paper="Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, "
    "https://arxiv.org/abs/2403.19522",
    space="deltas",
    base="required",
    models=(3, None),
    measures="the Gram matrix of the deltas",
    missing="keep_base",
)
def model_stock(p: ModelStockParams, target: Target) -> Recipe:
    """Averages the models, and goes from the base towards the average by t = n c / (1 + (n - 1) c), where c is the mean
    cosine between the deltas of n models. The more they agree, the nearer to the average.

    Deltas that point apart give a negative t. Where their mean cosine is -1 / (n - 1), t has no value, and the base is
    kept.
    """
    vectors: Vectors = "rows" if p.filter_wise and len(target.shape) > 1 else "tensor"
    dots = np.array((yield gram_of(vectors, target)))
    share = ratio(mean_cosine(dots), len(dots)) / len(dots)
    return weighted(vectors, [share] * len(dots), target)


def mean_cosine(dots: Array) -> Array:
    """Gram matrices [n, n, ...] -> [...] the mean over all pairs."""
    lengths = [np.sqrt(dots[i, i]) for i in range(len(dots))]
    cosines = [
        np.clip(dots[i, j] / np.maximum(lengths[i] * lengths[j], LEAST_PRODUCT), -1.0, 1.0)
        for i, j in combinations(range(len(dots)), 2)
    ]
    mean: Array = reduce(np.add, cosines) / len(cosines)
    return mean


def ratio(cosine: Array, n: int) -> Array:
    """[...] t: 0 gives the base, 1 the average of the n models."""
    denominator = 1.0 + (n - 1) * cosine
    at_pole = np.abs(denominator) < LEAST_DENOMINATOR
    t: Array = np.where(at_pole, 0.0, n * cosine / np.where(at_pole, 1.0, denominator))
    return t

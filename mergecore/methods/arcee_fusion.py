"""Arcee Fusion: take from the other model the elements whose change matters most to the row that they are in."""

from mergecore.methods.method import Params, Recipe, Target
from mergecore.methods.registry import method
from mergecore_kernels.operations import ImportanceQuantiles, TakeImportant


@method(
    "arcee_fusion",
    params=Params,
    example=Params(),
    paper="No paper; mergekit's Arcee Fusion, "
    "https://github.com/arcee-ai/mergekit/blob/main/docs/merge_methods.md#arcee-fusion-arcee_fusion",
    space="deltas",
    base="required",
    models=(2, 2),
    measures="the quantiles of the importance",
    missing="keep_single",
)
def arcee_fusion(p: Params, target: Target) -> Recipe:
    """Takes the important elements of one model and leaves the base as it is elsewhere.

    An element is as important as it moved, times the divergence KL(softmax(model) ‖ softmax(base)) of its row. The
    important ones are the outliers, from median + 1.5 · (upper quartile - lower quartile) on. Quartiles are those of
    all elements, where mergekit draws a million at random; so nothing here is random. The result has the dtype of the
    models, where mergekit makes it float32.
    """
    quarters = (0.25, 0.5, 0.75)
    (lower, median, upper), divergences = yield ImportanceQuantiles(quarters, target.columns, target.n)
    return TakeImportant(median + 1.5 * (upper - lower), divergences, target.columns)

"""Combining masked deltas, with and without an election of signs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergecore_kernels.operations import Consensus, Drop, Key, KthMagnitudes, Trim
from mergecore_kernels.torch_ops import CHUNK, Tile, Workspace, combine, measure

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
KEYS = tuple(Key.of("drop", 3, "model.layers.0.mlp.down_proj.weight", model) for model in range(4))
SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17]
NO_MASKS = (None, None, None)
DROPS = tuple(Drop.keeping(density, key) for density, key in zip((0.5, 0.9, 0.2), KEYS, strict=False))
SPECS = {
    "ties": Consensus((0.5, 0.3, 0.2), NO_MASKS, (1.0,) * 3, elect=True, normalize=True, scale=1.0),
    "ties, equal weights": Consensus((1.0,) * 3, NO_MASKS, (1.0,) * 3, elect=True, normalize=True, scale=0.7),
    "ties, a negative weight": Consensus((0.5, -0.3, 0.2), NO_MASKS, (1.0,) * 3, elect=True, normalize=True, scale=1.0),
    "ties, weights that cancel": Consensus(
        (0.5, -0.5, 0.0), NO_MASKS, (1.0,) * 3, elect=True, normalize=True, scale=1.0
    ),
    "dare_ties": Consensus((0.5, 0.3, 0.2), DROPS, (2.0, 1.1, 5.3), elect=True, normalize=False, scale=1.0),
    "dare_ties, normalized": Consensus((0.5, 0.3, 0.2), DROPS, (2.0, 1.1, 5.3), elect=True, normalize=True, scale=1.5),
    "dare_linear": Consensus((0.5, 0.3, 0.2), DROPS, (2.0, 1.1, 5.3), elect=False, normalize=False, scale=0.5),
    "linear, normalized": Consensus((0.5, 0.3, 0.4), NO_MASKS, (1.0,) * 3, elect=False, normalize=True, scale=1.0),
    "linear, sum of zero": Consensus((0.5, 0.0, -0.5), NO_MASKS, (1.0,) * 3, elect=False, normalize=True, scale=1.0),
}


@pytest.fixture(scope="session")
def kept_by(oracle_hash):
    """kept_by(mask, delta) -> bool [n]: which elements a mask keeps."""

    def kept(mask, delta):
        if mask is None:
            return np.ones(len(delta), bool)
        hashes = oracle_hash(mask.key, np.arange(len(delta)))
        if isinstance(mask, Drop):
            return hashes < mask.threshold
        magnitude = np.abs(delta).astype(np.float32)
        return (magnitude > mask.magnitude) | ((magnitude == mask.magnitude) & (hashes <= mask.hash_cut))

    return kept


@pytest.fixture(scope="session")
def defined(kept_by):
    """defined(spec, models, base, dtype) -> the combination by its definition, in numpy with comparisons and `where`,
    each step rounded to `dtype`; before the rounding to the output."""

    def combined(spec, models, base, dtype):
        compute = np.float64 if dtype == F64 else np.float32
        base = base.to(dtype).numpy()
        total_weight = sum(spec.weights)
        divisor = total_weight if not spec.elect and spec.normalize and abs(total_weight) >= 1e-8 else 1.0
        weighted = []
        for x, w, mask, rescale in zip(models, spec.weights, spec.masks, spec.rescales, strict=True):
            delta = x.to(dtype).numpy() - base
            weighted.append(np.where(kept_by(mask, delta), delta, compute(0)) * compute(w * rescale / divisor))
        total = sum_in_order(weighted)
        if spec.elect:
            sign = np.where(total < 0, compute(-1), compute(1))
            agree = [d * sign > 0 for d in weighted]
            total = sum_in_order([np.where(a, d, compute(0)) for a, d in zip(agree, weighted, strict=True)])
            if spec.normalize:
                weights = sum_in_order([a * compute(w) for a, w in zip(agree, spec.weights, strict=True)])
                total = total / np.where(weights == 0, compute(1), weights)
        return torch.from_numpy(base + total * compute(spec.scale))

    return combined


def sum_in_order(terms):
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def merged(spec, tiles, dtype, n, workspace):
    out = torch.full((n,), float("nan"), dtype=dtype)
    for tile in tiles:
        combine(spec, tile, out[tile.start : tile.start + len(tile)], workspace)
    return out


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", ["ties", "dare_ties", "dare_linear"])
def test_every_bit_follows_the_definition(workspace, cut, fine_tunes, defined, name, n):
    spec = SPECS[name]
    base, models = fine_tunes(n, (BF16,) * 4)
    got = merged(spec, cut(models, base, 2), F32, n, workspace)
    assert torch.equal(got, defined(spec, models, base, F32))


@pytest.mark.parametrize("dtypes", [(F16,) * 4, (F32,) * 4, (F64,) * 4, (F32, F64, BF16, F16), (F32, BF16, F16, BF16)])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_dtype_follows_the_definition(workspace, cut, fine_tunes, defined, spec, dtypes):
    n = 9999
    base, models = fine_tunes(n, dtypes)
    compute = F64 if F64 in dtypes else F32
    got = merged(spec, cut(models, base), compute, n, workspace)
    assert torch.equal(got, defined(spec, models, base, compute))


@pytest.mark.parametrize("out_dtype", [BF16, F16, F32], ids=str)
def test_close_to_the_mean_of_those_that_agree(workspace, cut, fine_tunes, out_dtype):
    """TIES in float64, element by element. Where the vote is so close that float32 may elect the other sign, either
    result is right."""
    n = 4000
    base, models = fine_tunes(n, (BF16,) * 4)
    got = merged(SPECS["ties"], cut(models, base), out_dtype, n, workspace).double()
    deltas = torch.stack([x.double() - base.double() for x in models])  # exact
    weights = torch.tensor(SPECS["ties"].weights, dtype=F64)[:, None]
    votes = (weights * deltas).sum(0)
    sign = torch.where(votes >= 0, 1.0, -1.0)
    agree = deltas * sign > 0
    mean = (weights * deltas * agree).sum(0) / (weights * agree).sum(0).clamp(min=1e-300)
    want = base.double() + mean
    scale = base.double().abs() + deltas.abs().sum(0)
    # At most ten float32 roundings per element, each within half a unit of what the mean is made of.
    bound = torch.finfo(out_dtype).eps * want.abs() + 10 * 2.0**-24 * scale
    clear = votes.abs() > 8 * 2.0**-24 * (weights * deltas.abs()).sum(0)
    assert int(clear.sum()) > 0.99 * n
    assert ((got - want).abs() <= bound)[clear].all()


def test_by_hand(workspace, cut):
    """Elected: plus (2 - 1), minus (-3 + 1), plus by a zero vote (1 - 1), none."""
    base = torch.tensor([10.0, 10.0, 10.0, 10.0])
    models = [base + torch.tensor([2.0, -3.0, 1.0, 0.0]), base + torch.tensor([-1.0, 1.0, -1.0, 0.0])]
    spec = Consensus((1.0, 1.0), (None, None), (1.0, 1.0), elect=True, normalize=True, scale=2.0)
    assert merged(spec, cut(models, base), F32, 4, workspace).tolist() == [14.0, 4.0, 12.0, 10.0]


@pytest.mark.parametrize("elect", [True, False])
def test_trimmed(workspace, cut, fine_tunes, defined, elect):
    n = 2 * CHUNK + 501
    base, models = fine_tunes(n, (BF16,) * 4, 0.0002)
    trims = measure(KthMagnitudes((n // 2, n // 5, 0), KEYS[:3]), cut(models, base), workspace)
    assert all(isinstance(mask, Trim) for mask in trims)
    spec = Consensus((0.5, 0.3, 0.2), trims, (1.0, 1.2, 1.0), elect=elect, normalize=True, scale=1.0)
    got = merged(spec, cut(models, base, 3), BF16, n, workspace)
    assert torch.equal(got, defined(spec, models, base, F32).to(BF16))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_tilings_and_backends_give_the_same_bits_and_inputs_stay(cut, fine_tunes, spec):
    n = 3 * CHUNK + 77
    base, models = fine_tunes(n, (BF16, F32, BF16, F16))
    before = [x.clone() for x in (base, *models)]
    results = [
        merged(spec, cut(models, base, chunks), BF16, n, Workspace("cpu", 0, use_numpy=use_numpy))
        for chunks, use_numpy in ((1, True), (2, True), (4, True), (3, False))
    ]
    assert all(torch.equal(result, results[0]) for result in results)
    assert all(torch.equal(x, y) for x, y in zip(before, (base, *models), strict=True))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_zero_deltas_give_the_base(workspace, cut, fine_tunes, spec):
    base, _ = fine_tunes(1000, (BF16,))
    assert torch.equal(merged(spec, cut([base] * 3, base), BF16, 1000, workspace), base)


def test_is_symmetric_in_the_sign(workspace, cut, fine_tunes):
    base, models = fine_tunes(CHUNK, (F32,) * 4)
    deltas = [x - base for x in models]
    zeros = torch.zeros(CHUNK)
    up = merged(SPECS["ties"], cut(deltas, zeros), F32, CHUNK, workspace)
    down = merged(SPECS["ties"], cut([-d for d in deltas], zeros), F32, CHUNK, workspace)
    assert torch.equal(up, -down)


def test_workspace_does_not_remember(workspace, cut, fine_tunes):
    base, models = fine_tunes(CHUNK + 5, (F32,) * 4)
    first = merged(SPECS["ties"], cut(models, base), BF16, CHUNK + 5, workspace)
    other = SPECS["ties, weights that cancel"]
    merged(other, cut([x * float("nan") for x in models], base), BF16, CHUNK + 5, workspace)
    assert torch.equal(merged(SPECS["ties"], cut(models, base), BF16, CHUNK + 5, workspace), first)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["ties", "linear, normalized"])
def test_nonfinite_stays_where_it_is(workspace, cut, fine_tunes, special, name):
    base, models = fine_tunes(1000, (BF16,) * 4)
    models[1][500] = special
    got = merged(SPECS[name], cut(models, base), BF16, 1000, workspace)
    assert (~torch.isfinite(got)).nonzero().flatten().tolist() == [500]


weights = st.sampled_from([1.0, 0.5, 0.1, -0.3, 0.0, 1e-9, 3.0])


@settings(max_examples=150)
@given(st.data())
def test_any_few_models(defined, data):
    """One to five models, with deltas that are small whole numbers, so that votes tie and deltas vanish often."""
    m, n = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    small = st.integers(-2, 2).map(float) | st.floats(-1, 1, width=32)
    models = [torch.tensor(data.draw(st.lists(small, min_size=n, max_size=n)), dtype=F32) for _ in range(m)]
    base = torch.tensor(data.draw(st.lists(small, min_size=n, max_size=n)), dtype=F32)
    spec = Consensus(
        weights=tuple(data.draw(weights) for _ in range(m)),
        masks=tuple(
            data.draw(st.sampled_from([None, Drop.keeping(0.5, KEYS[0]), Trim(1.0, 1 << 31, KEYS[1])]))
            for _ in range(m)
        ),
        rescales=tuple(data.draw(st.sampled_from([1.0, 1.7])) for _ in range(m)),
        elect=data.draw(st.booleans()),
        normalize=data.draw(st.booleans()),
        scale=data.draw(st.sampled_from([1.0, 0.3, -2.0])),
    )
    out = torch.full((n,), float("nan"))
    combine(spec, Tile(0, models, base, F32), out, Workspace("cpu", 0))
    assert torch.equal(out, defined(spec, models, base, F32))

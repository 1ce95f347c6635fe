"""How measurements of many tensors draw their tiles."""

import torch

from mergecore_kernels.torch_ops import Tile
from mergecore_kernels.triton_ops.batches import Peeked, Pending, awaited, rounds


class OneBuffer:
    """Tiles that share their memory, so that each is valid only until the next is drawn."""

    def __init__(self, values):
        self.values = values
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        buffer = torch.empty(1)
        for i, value in enumerate(self.values):
            yield Tile(i, [buffer.fill_(value)], None, torch.float32)


def values_of(tiles):
    return [float(tile.inputs[0]) for tile in tiles]


def test_rounds_take_one_tile_of_each_job():
    jobs = [OneBuffer([1, 2, 3]), OneBuffer([]), OneBuffer([4]), OneBuffer([5, 6])]
    drawn = [[(job, float(tile.inputs[0])) for job, tile in tiles] for tiles in rounds(jobs)]
    assert drawn == [[(0, 1), (2, 4), (3, 5)], [(0, 2), (3, 6)], [(0, 3)]]
    assert [job.passes for job in jobs] == [1, 1, 1, 1]


def test_a_look_at_the_first_tile_costs_no_pass():
    tiles = OneBuffer([1, 2])
    peeked = Peeked(tiles)
    assert peeked.first is not None
    assert values_of(peeked) == [1, 2]
    assert tiles.passes == 1
    assert values_of(peeked) == [1, 2]
    assert tiles.passes == 2
    assert Peeked(OneBuffer([])).first is None


def test_results_of_any_dtype_come_in_one_copy():
    pending = [
        Pending(torch.tensor([0.5, -1.0], dtype=torch.float64), lambda values: [sum(values)]),
        Pending(torch.tensor([], dtype=torch.float64), lambda values: values),
        Pending(torch.tensor([1 << 60, -3]), lambda values: values),
    ]
    assert awaited(pending) == [[-0.5], [], [1 << 60, -3]]
    assert awaited([]) == []

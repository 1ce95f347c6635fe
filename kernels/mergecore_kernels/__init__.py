"""The arithmetic of model merging: a few operations on tiles of tensors, on any device, with the same bits.

`operations` says what can be asked for, `torch_ops` holds the definition of each operation in torch, one file each.
Knows nothing of files, configs or models.
"""

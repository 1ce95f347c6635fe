"""Merges of tensors that are in memory, with the arithmetic and the bits of a merge of files."""

from mergecore.in_memory.merge import merge_state_dicts, merge_tensors

__all__ = ["merge_state_dicts", "merge_tensors"]

"""mergecore merges the weights of language models."""

"""The output's vocabulary: its tokens, where the row of each comes from, and the tokenizer's files."""

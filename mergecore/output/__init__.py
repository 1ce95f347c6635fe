"""What a model folder holds beside the weights: index, config.json, tokenizer, model card."""

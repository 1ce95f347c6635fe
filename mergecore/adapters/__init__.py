"""LoRA adapters as the result: extracted from a fine-tuned model, or merged from other adapters."""

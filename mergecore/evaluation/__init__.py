"""How good models are: losses on texts, what they write, and the tasks of lm-eval."""

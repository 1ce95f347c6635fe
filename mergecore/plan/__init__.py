"""From a config and the headers of its models to a plan: pure data that says what to read, compute and write."""

"""The command line of mergecore."""

"""Publishes merged models on the Hub."""

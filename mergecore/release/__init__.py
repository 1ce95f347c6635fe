"""Publishes merged models and adapters on the Hub."""

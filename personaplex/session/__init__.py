"""Conversations on an engine: prompts, their snapshots, recorded questions and answers."""

"""Preset roles and voices, and the user's own."""

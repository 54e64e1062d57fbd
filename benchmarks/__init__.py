"""Measurements of speed, memory and behaviour: each command ends in one JSON line."""

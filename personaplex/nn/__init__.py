"""Layers, weight formats, explicit state and sampling."""

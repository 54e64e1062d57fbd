"""Repairs to Gradio, FastRTC and aiortc; each names the version it is for and the bug."""

"""Repairs to Gradio 5.50.0 and FastRTC 0.0.34; each names upstream's bug, and goes when the pin moves past it."""

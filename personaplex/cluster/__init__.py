"""Conversations on many machines, by Ray Serve: replicas that hold them, and the page that places them."""

"""The networks: Mimi codec, temporal and depth transformer."""

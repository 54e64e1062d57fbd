"""The user's words: recognisers, which are optional, in a process of their own."""

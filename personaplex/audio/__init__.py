"""Sound as arrays: files, frames, loudness, speech activity."""

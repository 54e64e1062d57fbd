"""The recipe of the embedded model: speech, codec, language model."""

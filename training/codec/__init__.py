"""The recipe of the embedded codec: a small network of the published codec's layout, trained on synthetic speech."""

"""PersonaPlex: an open full-duplex speech-to-speech engine in PyTorch."""

__version__ = "0.1.0"

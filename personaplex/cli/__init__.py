"""The command line: ``python -m personaplex``."""

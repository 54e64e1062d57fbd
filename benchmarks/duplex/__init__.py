"""Behaviour of a full-duplex model, in the layout and with the definitions of Full-Duplex-Bench.

`python -m benchmarks.duplex --help` says what it does; docs/behaviour.md explains it.
"""

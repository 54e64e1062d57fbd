"""Many conversations on one engine: queue, slots, limits, where the engine runs, metrics."""

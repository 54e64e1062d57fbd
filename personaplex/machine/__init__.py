"""Facts of this machine, the cost of the models on it, and the choice of the one that runs."""

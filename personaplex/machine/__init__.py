"""What this machine is, what the models cost on it, and which one runs here."""

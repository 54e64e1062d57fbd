"""Model files: found, downloaded, checked, loaded, packed."""

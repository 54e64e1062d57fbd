"""The duplex engine: one call is one frame of every slot. Tensors only."""

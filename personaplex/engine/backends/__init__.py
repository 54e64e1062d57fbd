"""Ways to compute a frame: compiled code on a CPU, Triton kernels and CUDA graphs on a GPU."""

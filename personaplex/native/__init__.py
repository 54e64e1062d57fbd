"""The C++ code: compiled at first use, loaded with ctypes."""

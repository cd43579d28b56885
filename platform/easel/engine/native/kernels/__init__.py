"""Triton kernels of the native engine, each beside the plain torch it must agree with.

Owns: what runs on the GPU's cores. Refuses to know: requests, sequences, schedules and files. Everything here may be
captured in a CUDA graph: no host synchronisation, no allocation that depends on data, sizes that vary are read from
device tensors. Imported only where there is a GPU, or Triton's interpreter.
"""

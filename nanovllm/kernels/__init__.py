"""Everything that touches floats in bulk: Cython modules over the C kernels in csrc."""

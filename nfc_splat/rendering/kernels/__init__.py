"""The numeric kernels, one module per operation and device; `nfc_splat.rendering.rasterize` and its neighbours choose."""

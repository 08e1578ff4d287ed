"""The numeric kernels, one module per operation and device; `nfc_splat.rendering.rasterize` chooses among them."""

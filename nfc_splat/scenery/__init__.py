"""The built-in scenes: geometry, procedural textures, baked light and a ray tracer.

`shapes` makes meshes, `textures` and `pictures` make images; `room` (with `furniture`) and `urn` arrange them into a
`Scenery` (`scene`); `casting` finds what rays meet, `shading` gives surfaces their colour, `lighting` bakes the light
that does not depend on the viewer, `drawing` draws, and `export` writes a scene folder. numpy, Pillow and open3d's
ray casting; no torch.
"""

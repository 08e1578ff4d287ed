"""The viewer: `python -m nfc_splat.view RUN`, and `python -m nfc_splat.train SCENE --view`.

address.py     where the page is: host, port, URL, who may connect
space.py       the viewer's frame, which way is up, where to begin
splats.py      Gaussians as the browser draws them
drawn.py       pictures that a model draws: coarse first, then finer; colour, depth, normals, error
items.py       photographs as frusta, meshes and clouds of the run folder
page.py        the server, its controls and its visitors: `Viewer`
watching.py    a viewer of a model in training
"""

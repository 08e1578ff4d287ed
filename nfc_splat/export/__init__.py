"""Taking a trained scene elsewhere: `python -m nfc_splat.export {mesh,splats,points,cameras} RUN`."""

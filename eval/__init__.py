"""Measuring: image metrics, geometry metrics, speed. Importing this costs nothing."""

"""Defences at test time, on one footing: modules from images to images, made by name in `catalogue`."""

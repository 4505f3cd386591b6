"""Decoding of input images, encoding of results, and the image file formats."""

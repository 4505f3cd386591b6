"""Draws coloured shapes, trains the small built-in text-to-image model on them and grades it."""

"""Rendering of `imagegen top`: pure functions of two snapshots of the fleet."""

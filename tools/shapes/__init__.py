"""Training data, training and grading of the built-in text-to-image model `shapes`."""

"""What imagegen is worth, in figures: one room for each question. README.md says how each one measures."""

"""One worker process for each GPU: `plan.py` chooses the workers, `core.py` decides, `shell.py` runs processes."""

"""One worker process for each GPU: planned in `plan.py`, decided in `core.py`, carried out in `shell.py`."""

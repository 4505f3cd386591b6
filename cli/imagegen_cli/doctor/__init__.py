"""`imagegen doctor`: `asking.py` and `looking.py` gather facts, and pure checks judge them."""

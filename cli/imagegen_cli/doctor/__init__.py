"""`imagegen doctor`: the probes gather facts, and pure checks turn them into findings."""

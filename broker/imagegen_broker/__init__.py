"""The broker: takes requests from clients, keeps one bounded queue, and binds each late to a worker."""

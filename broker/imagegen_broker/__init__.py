"""The broker: queues requests of clients, up to a maximum, and dispatches each one when a worker has room."""

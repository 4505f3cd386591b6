"""The HTTP gateway: an OpenAI-compatible API and durable jobs, and nothing but a client of the brokers."""

"""The HTTP gateway: OpenAI's images API, durable jobs and a web page, as a client of the brokers."""

"""What the bodies of requests and answers hold; OpenAPI is made from these."""

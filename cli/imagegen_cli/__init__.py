"""The `imagegen` command, built on the client library."""

"""The worker role: a daemon for one device that takes work from brokers, batches it and answers with images."""

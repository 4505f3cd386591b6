"""The worker role: a daemon that batches requests of brokers and generates their images on one device."""

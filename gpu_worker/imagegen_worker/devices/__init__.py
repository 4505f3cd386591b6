"""The GPUs of this host: which there are, which may be used, how they are. torch is not needed for it."""

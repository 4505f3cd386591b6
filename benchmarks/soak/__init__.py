"""An hour of mixed traffic with restarts, and what memory, descriptors and threads do meanwhile: `make soak`."""

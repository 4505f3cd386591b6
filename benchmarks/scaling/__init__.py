"""How much of the best possible a fleet reaches: bursts, unlike workers, and arrivals at random."""

"""Jobs: accepted, kept, made and told of, whatever happens to the gateway meanwhile."""

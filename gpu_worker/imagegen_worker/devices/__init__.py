"""Detection, selection and readings of this host's GPUs, without torch."""

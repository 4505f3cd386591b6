"""What the programs share: settings, log lines, traces, atomic file writes, systemd. Imports no role."""

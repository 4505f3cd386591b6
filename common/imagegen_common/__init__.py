"""What the daemons' commands share: settings from files, logs, word to systemd. No role is imported here."""

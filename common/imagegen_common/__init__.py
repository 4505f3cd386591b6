"""What the daemons' commands share: settings from files, and logs. No role is imported here."""

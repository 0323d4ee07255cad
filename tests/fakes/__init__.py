"""Stand-ins for libraries that need a device which is not here."""

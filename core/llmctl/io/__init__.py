"""Files on disk whatever they hold: written whole or not at all, hashed, JSON with errors that name the file."""

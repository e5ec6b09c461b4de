"""Ranks that fail, hang or vanish: what the others hear of it, through the common store. No paddle here."""

"""Preference pairs for DPO: read, encoded, and laid out as rows in which both answers share the prompt."""

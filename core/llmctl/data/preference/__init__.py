"""Chosen and rejected answers for DPO: read, encoded, laid out in rows that share a prompt."""

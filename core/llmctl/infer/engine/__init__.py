"""Continuous batching: requests, scheduler, block tables of the KV cache, one step at a time."""

"""Answers: their text while it grows, thoughts and calls of functions in it, and the form that they are bound to."""

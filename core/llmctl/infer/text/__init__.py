"""From prompts, conversations and files of them to text, over any backend."""

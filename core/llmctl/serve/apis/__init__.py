"""The APIs that are spoken: fields of bodies, jobs from bodies, answers as each API writes them."""

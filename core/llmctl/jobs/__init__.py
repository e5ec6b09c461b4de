"""Checked configurations: all checks that need no paddle, the jobs that they make, and the memory plan of a job."""

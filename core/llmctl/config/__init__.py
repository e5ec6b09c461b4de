"""The configuration of jobs: fields with their help, sections by command, files and overrides."""

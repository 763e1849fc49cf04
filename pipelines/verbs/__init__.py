"""The verbs of the command, a file for each family; `pipelines.cli` puts them together."""

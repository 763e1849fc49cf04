"""The command and the job: puts wsi, stain and mil together."""

__version__ = "0.1.0"

"""python -m fastopt prints the configuration."""

from . import show_config

show_config()

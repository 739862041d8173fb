"""TinyAlign: small vision-language models with a memory of their own training pairs."""

from tinyalign.model.registration import register

__version__ = "0.1.0"

register()

"""TinyAlign: small vision-language models with a memory of their own training pairs."""

__version__ = "0.1.0"

"""zkc: sends files, pipes and messages straight from one computer to another, end-to-end encrypted, with a receipt."""

__version__ = "0.1.0"

"""The terminal's face: an inbox like a mail program's, over one home (Textual)."""

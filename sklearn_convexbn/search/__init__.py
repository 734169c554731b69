"""The most violated unit of the dual: searched, exactly, and which of the two."""

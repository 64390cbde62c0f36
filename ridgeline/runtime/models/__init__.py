"""One file per architecture, written against ops."""

"""What a command depends on outside of itself, checked within seconds and before any work."""

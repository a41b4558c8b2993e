"""What is decided before the selection: pins, bans, copies and leaks, lists of a user's own."""

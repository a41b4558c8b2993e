"""What a withdrawal leaves in a store, and how rows and files lose what was withdrawn."""

"""UniUS-Bench: cards of published sets, and what turns a download into one form of table."""

"""The command line: one command per stage, and the questions people ask of a store."""

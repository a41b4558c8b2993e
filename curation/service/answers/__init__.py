"""The service's answers as plain values, one function per question.

The HTTP routes turn them into responses; ``curation.local`` returns them without a server.
"""

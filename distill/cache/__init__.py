"""The teacher cache: teacher outputs for a finite set of views."""

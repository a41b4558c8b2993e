"""Patients: how their ids are spelt, and the groups that their images make."""

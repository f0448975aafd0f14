"""Rows of a party's own data out of files."""

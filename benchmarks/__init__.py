"""Time only: the cases of this project, and other systems beside it."""

"""watchtree and watchhistory for Python: tests and tools."""

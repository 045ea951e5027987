"""The run folder as analysis reads it: files, records, cells and what the plan says. No statistics."""

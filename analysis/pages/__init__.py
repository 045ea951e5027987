"""What a report is made of beside figures: its tables, LaTeX, methods, index and templates."""

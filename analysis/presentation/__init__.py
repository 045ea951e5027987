"""How charts, tables and pages look and are written. Nothing here knows what a study asks."""

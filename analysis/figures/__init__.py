"""What tables look like: Altair panels, one look for all, and their files. Nothing is computed here."""

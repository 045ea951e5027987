"""The replication of Ajroldi, Orvieto, Geiping 2025: every claim of the paper, held against run folders."""

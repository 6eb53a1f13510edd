"""What evaluations and training came to: pages, pictures and tables, over one run and over many."""

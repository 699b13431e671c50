"""Results of runs: rows on disk, statistics, and the tables made of them."""

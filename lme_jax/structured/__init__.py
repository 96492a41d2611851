"""Models with structured residual errors: their data, doors, results and tables."""

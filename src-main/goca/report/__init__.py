"""Results of a run: tables, results.json and report.html."""

"""Show what came out: the summary, the table, the plots and the HTML report."""

"""Present the results of a sweep: the summary, the table, the plots and the HTML report."""

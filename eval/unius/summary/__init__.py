"""The report on a benchmark: intervals, averages, paired differences, costs, on one page."""

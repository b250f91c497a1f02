"""What was decided: the decision log and the metrics."""

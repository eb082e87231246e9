"""What people look at and take away: the live display, the summary, the report, the model card."""

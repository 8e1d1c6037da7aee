"""Self-contained HTML pages, and plots of the charts that results store. Import its modules."""

"""The browser: pages that read feature stores and evaluation results."""

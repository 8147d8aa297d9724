"""Documents of the knowledge base, on real servers."""

"""A result for people: `markdown.py` as text, `page.py` as one HTML page with the answers that went wrong."""

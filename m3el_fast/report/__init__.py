"""The page that shows an evaluation: figures, groups of mentions, the worst misses. One HTML file, no request."""

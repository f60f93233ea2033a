"""The one reader of metrics/: rows, gains, the champion, stale results, comparisons."""

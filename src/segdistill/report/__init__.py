"""The report: one HTML file that opens anywhere, offline, and answers first which student to ship."""

"""One network per file, named as params.yaml names it. A stage depends on the networks that its params name."""

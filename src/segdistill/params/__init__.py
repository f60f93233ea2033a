"""params.yaml as typed, frozen models. DVC tracks the values, so no stage depends on this package."""

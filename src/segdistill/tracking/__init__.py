"""The sweep in MLflow: one row per run, read from the files under metrics/. The only importer of mlflow."""

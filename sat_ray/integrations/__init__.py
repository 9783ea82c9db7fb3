"""How the project meets Ray, MLflow and the command line: the only imports of ray and mlflow."""

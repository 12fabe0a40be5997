"""One file a method: its roles, its losses, its data needs. No method knows Ray, MLflow or files."""

"""One file a method: what it trains, its losses, its data needs. No method knows Ray, MLflow or files."""

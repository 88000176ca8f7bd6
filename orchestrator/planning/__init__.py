"""Plan a sweep: jobs and their signatures, recipe searches, estimates. No torch, Ray or MLflow."""

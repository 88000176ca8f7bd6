"""Plan a sweep: the jobs and their signatures, searches for recipes, estimates. Pure of torch, Ray and MLflow."""

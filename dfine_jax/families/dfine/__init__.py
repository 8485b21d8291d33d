"""D-FINE (arXiv 2410.13842), also as DEIM trains it (arXiv 2412.04234)."""

"""Lightning modules: what is trained or evaluated, one per job."""

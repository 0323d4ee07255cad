"""Stage 2: a row of data and a checkpoint become the model as trained."""

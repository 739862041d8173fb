"""Making and changing banks: built by `builder`, changed by `changes`, from and to parquet."""

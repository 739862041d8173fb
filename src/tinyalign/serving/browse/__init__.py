"""A local web page that shows a memory bank: its entries, a search, neighbours, and a map."""

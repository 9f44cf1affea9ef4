"""What is made from the nodes, and made anew with one command: python -m tools.refresh

The nodes say what they take and give; from that come the schema that tests hold on to (`docs/nodes.json`), the English texts
and the frame of the translations (`locales/`), and the tables of the help pages (`web/docs/`). A test asks that all of it is
current. `schema.py`, `texts.py` and `help_tables.py` are one kind of file each, `made.py` puts them together.
"""

"""Many requests from a file: `longview batch`.

rows.py       a line of the file → a request in OpenAI's form
servers.py    where requests go: servers, or (local.py) the routes of a server that has no socket; tries again
job.py        requests → the journal → output.jsonl and errors.jsonl, in the order of the rows
"""

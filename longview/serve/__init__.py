"""The server: OpenAI's API over HTTP, with each model's engine in a process of its own.

    client ── Guard ── app.py ── schema.py ── jobs.py ── models.py ── process.py ══ socket ══ worker.py ── engines.py
              keys,    routes    OpenAI's     request    which        one process             a model's     its engines
              hosts              names        → job      model        started, watched        process
              └ security.py      └ chat.py: events → chunks or a completion; sse.py writes them

    joined.py, join.py   in place of process.py: a model that another command adds to the server, and that command
    ray.py               in place of process.py: replicas on Ray Serve
    settings.py          what the command line says of the server      errors.py   OpenAI's error object
    server.py            uvicorn, signals, one address                 wire.py     messages of the socket
    batches/             many requests from a file: `longview batch`

The server itself computes nothing and opens no medium: its event loop waits for thousands of clients, and no thread
waits for any of them.
"""

"""Find moments in films, pictures and passages by what they show or say.

    folders ── scan.py ── files that are new or changed
                 └── read.py ── frames (one a second, without near-duplicates), pictures, passages
                       └── a SigLIP checkpoint ── vectors ── store.py (LanceDB)
    a question, a picture ── vector ── nearest ones ── moments.py ── moments: file, from, to, score

An index is a folder: the database, and a journal of the files in it (`catalogue.py`), by which a killed run goes on and
unchanged files are not read again.
"""

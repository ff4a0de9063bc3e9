"""Decoders of pictures and videos, each under limits; whatever the libraries raise is a `MediaError`.

headers.py     what the headers of a picture say, and limits on their number
pillow.py      encoded pictures → upright RGB images
animation.py   GIF, WebP and PNG animations as videos
pictures.py    pictures from any source, and lists of them as videos
containers.py  what the tables of a video file claim, and limits on it
track.py       the video track of a file: packets and frames, by PyAV
video.py       random access to the frames of a video file
isolation.py   the same decoders in child processes; worker.py is what runs there
"""

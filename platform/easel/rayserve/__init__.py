"""The shells that Ray Serve runs, and the only package that imports Ray.

Each class here holds a plain object and translates; a line of policy in it is in the wrong room.
"""

"""One run: assembled, looped, measured.

A plan goes in, a trained run's folder comes out. Everything below is put together in `assembly` and called in `loop`.
"""

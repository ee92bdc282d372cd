"""Readers of file formats: folders, zips, tars, LMDB, pickled arrays, images."""
